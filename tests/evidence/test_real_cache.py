"""What was made once is found again by content and circumstances, and by nothing else."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import artifacts
from pipeline.evidence import real_cache
from tests.conftest import ROOT

ABOUT = {"weights": "a", "threads": "1"}
IMAGES = torch.arange(48, dtype=torch.uint8).view(3, 1, 4, 4)


class Double:
    """Doubles what it gets, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, given: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"double": 2 * given.float(), "row": torch.arange(len(given))}


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Double:
    monkeypatch.chdir(tmp_path)
    return Double()


def test_an_equal_tensor_is_recalled_bit_for_bit(double: Double) -> None:
    first, second = real_cache.recall(ABOUT, IMAGES, double), real_cache.recall(dict(ABOUT), IMAGES.clone(), double)
    assert double.calls == 1
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("about", "given"),
    [
        ({**ABOUT, "weights": "b"}, IMAGES),
        ({**ABOUT, "threads": "2"}, IMAGES),
        (ABOUT, IMAGES.flip(0)),
        (ABOUT, IMAGES[:2]),
        (ABOUT, IMAGES.view(3, 1, 2, 8)),
        (ABOUT, IMAGES.view(torch.int8)),
    ],
    ids=["weights", "threads", "order", "count", "shape", "dtype"],
)
def test_whatever_differs_is_made_anew(about: dict[str, str], given: Tensor, double: Double) -> None:
    real_cache.recall(ABOUT, IMAGES, double)
    assert torch.equal(real_cache.recall(about, given, double)["double"], 2 * given.float())
    assert double.calls == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fill(path: Path) -> None:
    path.write_bytes(b"[]")


@pytest.mark.parametrize("harm", [flip, cut, empty, fill, Path.unlink])
@pytest.mark.parametrize("name", ["tensors.safetensors", artifacts.SEAL])
def test_a_broken_file_is_made_anew(name: str, harm: Callable[[Path], object], double: Double) -> None:
    real_cache.recall(ABOUT, IMAGES, double)
    (folder,) = real_cache.FOLDER.iterdir()
    harm(folder / name)
    for calls in (2, 2):
        assert torch.equal(real_cache.recall(ABOUT, IMAGES, double)["double"], 2 * IMAGES.float())
        assert double.calls == calls


def test_a_folder_that_another_process_made_meanwhile_stays(double: Double) -> None:
    def race(given: Tensor) -> dict[str, Tensor]:
        real_cache.recall(ABOUT, IMAGES, double)
        (folder,) = real_cache.FOLDER.iterdir()
        (folder / ".theirs").touch()  # hidden, since a seal names every other file
        return double(given)

    real_cache.recall(ABOUT, IMAGES, race)
    real_cache.recall(ABOUT, IMAGES, double)
    assert double.calls == 2
    assert [path.name for path in real_cache.FOLDER.glob("*/.theirs")] == [".theirs"]
    assert len(list(real_cache.FOLDER.iterdir())) == 1


def test_a_disk_that_takes_nothing_costs_time_alone(
    double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(real_cache, "FOLDER", tmp_path / "file" / "real")
    for calls in (1, 2):
        assert torch.equal(real_cache.recall(ABOUT, IMAGES, double)["double"], 2 * IMAGES.float())
        assert double.calls == calls


@pytest.mark.slow
def test_several_processes_keep_and_forget_at_the_same_time(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pipeline.evidence import real_cache; real_cache.MOST = 2000\n"
        "for step in range(60):\n"
        "    given = torch.full((20,), step % 7)\n"
        "    assert torch.equal(real_cache.recall({}, given, lambda x: {'y': 2 * x})['y'], 2 * given)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]


def test_the_last_used_ones_stay(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    real_cache.recall({"name": "size"}, IMAGES, double)
    (folder,) = real_cache.FOLDER.iterdir()
    monkeypatch.setattr(real_cache, "MOST", 2 * sum(path.stat().st_size for path in folder.iterdir()))
    shutil.rmtree(folder)
    for age, name in enumerate(("a", "b", "a", "c", "a")):
        real_cache.recall({"name": name}, IMAGES, double)
        for path in real_cache.FOLDER.iterdir():  # as if each had come a minute after the one before
            if path.stat().st_mtime > time.time() - 60:
                os.utime(path, (0, 1e9 + 60 * age))
    assert double.calls == 1 + 3
    assert len(list(real_cache.FOLDER.iterdir())) == 2
