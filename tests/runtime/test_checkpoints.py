"""Checkpoints: written whole or not at all, and a broken one is passed over. All are written by real trainings."""

import contextlib
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from pytorch_lightning import Callback

from pipeline.artifacts import ArtifactError
from pipeline.runtime import checkpoints, writer
from pipeline.stages import fetch, networks, prepare, train
from tests.conftest import ROOT
from tests.test_training import Crash, make, run


@pytest.fixture(autouse=True)
def _save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_CHECKPOINT_SECONDS", "1e-6")


class Stop(Callback):
    """Ends the training after a step, when its checkpoint has been written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index == self.step:
            raise InterruptedError


def stop_at(step: int, folder: Path, *callbacks: Callback) -> None:
    with pytest.raises(InterruptedError):
        run("transformer", state=folder, callbacks=[*callbacks, Stop(step)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The state of a training that was interrupted after step 6, with a checkpoint a step."""
    folder = tmp_path / "state"
    stop_at(6, folder)
    return folder


def found_step(folder: Path) -> int:
    found = checkpoints.find(folder)
    assert found
    return found[1]


def name_of(step: int) -> str:
    return f"step-{step:09d}.ckpt"


def test_the_newest_two_are_kept_with_their_hashes_and_nothing_else(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(f"{name_of(step)}{end}" for step in (5, 6) for end in ("", ".sha256"))
    assert found_step(folder) == 6


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # inside a tensor: torch.load does not notice
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("<!doctype html><title>404</title>"),
        lambda path: path.with_suffix(".ckpt.sha256").unlink(),
    ],
)
@pytest.mark.fault(3, 15)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    folder: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder / name_of(6))
    with caplog.at_level(logging.WARNING):
        assert found_step(folder) == 5
    assert f"{name_of(6)} is broken: expected SHA-256" in caplog.text


@pytest.mark.fault(15)
def test_a_damaged_checkpoint_does_not_push_a_valid_one_out(folder: Path) -> None:
    flip_a_bit(folder / name_of(6))
    shutil.copy(folder / name_of(6), folder / name_of(9))  # a later one, as broken
    stop_at(7, folder)
    assert [path.name for path in checkpoints.list_steps(folder)] == [name_of(7), name_of(6)]
    flip_a_bit(folder / name_of(7))
    assert found_step(folder) == 6


def test_without_any_valid_checkpoint_there_is_none(folder: Path) -> None:
    for path in checkpoints.list_steps(folder):
        flip_a_bit(path)
    assert checkpoints.find(folder) is None


class At(Callback):
    """Does something at the start of a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step = step
        self.action = action

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index + 1 == self.step:
            self.action(module)


def require_survival(folder: Path, step: int, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The training went on to its end, and what it saved before `step` is what stands there."""
    assert f"no checkpoint at step {step}: " in caplog.text
    assert found_step(folder) == step - 1
    assert not list(folder.glob("*.tmp"))
    straight = run("gan").state_dict()
    assert all(torch.equal(tensor, straight[key]) for key, tensor in model.state_dict().items())


@pytest.mark.fault(4)
def test_a_file_that_cannot_grow_is_a_warning_and_the_checkpoints_before_it_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(_: Any) -> None:
        size = (tmp_path / name_of(6)).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))

    try:
        model = run("gan", state=tmp_path, callbacks=[At(7, limit)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    require_survival(tmp_path, 7, model, caplog)


@contextlib.contextmanager
def mounted(folder: Path, mebibytes: int) -> Iterator[None]:
    """A small disk of its own, where this user may mount one."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.fault(4)
def test_a_full_disk_is_a_warning_and_the_checkpoints_before_it_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fill(_: Any) -> None:
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))

    disk = tmp_path / "disk"
    with mounted(disk, 24):
        model = run("gan", state=disk / "state", callbacks=[At(7, fill)])
        require_survival(disk / "state", 7, model, caplog)


WRITES_200_MB = """
import sys
from pathlib import Path
import torch
from torch import nn
from pytorch_lightning import LightningModule
from pipeline.batches import Rows
from pipeline.training import fit

class Large(LightningModule):
    def __init__(self):
        super().__init__()
        self.small = nn.Linear(1, 1)
        self.register_buffer("large", torch.rand(50_000_000))
    def training_step(self, batch, index):
        return {"loss": self.small(batch["labels"][:, None].float()).mean()}
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

fit(Large(), Rows({"labels": torch.arange(8)}), steps=1000, batch_size=8, seed=0, state=Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.fault(3)
def test_a_kill_while_200_mb_are_written_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    other_disk = Path("/dev/shm")  # noqa: S108 - where Lightning's own writer would stage the file
    environment = os.environ | {"TMPDIR": str(other_disk) if other_disk.is_dir() else str(tmp_path)}
    state = tmp_path / "state"
    process = subprocess.Popen([sys.executable, "-c", WRITES_200_MB, state], cwd=ROOT, env=environment)
    partial = state / "partial.tmp"
    end = time.monotonic() + 60
    while not (checkpoints.list_steps(state) and partial.exists() and partial.stat().st_size > 10**6):
        assert time.monotonic() < end, "no second checkpoint was begun"
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert partial.exists()  # it was killed while writing
    assert partial.stat().st_size < 200_000_000
    found = checkpoints.find(state)
    assert found
    assert len(torch.load(found[0], weights_only=True)["state_dict"]["large"]) == 50_000_000


def spoil_weight(module: Any) -> None:
    with torch.no_grad():
        module.generator.layers[0].bias[3] = torch.nan


def spoil_moment(module: Any) -> None:
    optimizer = module.trainer.optimizers[1]
    next(iter(optimizer.state.values()))["exp_avg_sq"].view(-1)[0] = torch.inf


@pytest.mark.parametrize(
    ("spoil", "name"),
    [(spoil_weight, "state_dict.generator.layers.0.bias"), (spoil_moment, "optimizer_states.1.state.0.exp_avg_sq")],
)
@pytest.mark.fault(2)
def test_what_is_not_finite_is_never_kept(
    tmp_path: Path, spoil: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Spoil(Crash):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if index + 1 == self.step:
                spoil(module)
                assert not writer.save(trainer, self.folder, self.step)
                raise InterruptedError

    with pytest.raises(InterruptedError):
        run("gan", state=tmp_path, callbacks=[Spoil(7, tmp_path)])
    assert f"no checkpoint at step 7: {name} is not finite" in caplog.text
    assert found_step(tmp_path) == 6


class Remembers(Callback):
    """A plug-in's callback whose state no safe loader reads."""

    def state_dict(self) -> dict[str, Any]:
        return {"path": Path("x"), "scale": np.float32(1.5)}


@pytest.mark.fault(9)
def test_a_checkpoint_that_could_not_be_resumed_from_stops_the_training_when_it_is_first_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(ArtifactError, match="no training could resume from a checkpoint of this model"):
        run("transformer", state=tmp_path, callbacks=[Remembers()])
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(4)
def test_a_disk_too_small_for_the_checkpoints_is_refused_before_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(ArtifactError, match=r"checkpoints need about \d+ MiB, 1 MiB are free"):
        checkpoints.require_space(folder, make("gan")[0])


@pytest.mark.fault(50)
def test_a_file_in_place_of_the_folder_is_refused_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"state/run: cannot be written: .*Not a directory"):
        run("transformer", state=tmp_path / "state" / "run")


@pytest.mark.usefixtures("tiny", "prepared")
@pytest.mark.fault(50)
def test_a_file_in_place_of_a_stages_results_is_refused_before_it_trains(workdir: Path) -> None:
    fetch.main("text")
    prepare.main("text")
    for folder, stage, key in (("runs/transformer", train, "transformer"), ("networks", networks, "classifier")):
        path = workdir / "data" / folder
        path.parent.mkdir(exist_ok=True)
        path.write_text("in the way")
        with pytest.raises(ArtifactError, match=f"data/{folder}: cannot be written"):
            stage.main(key)
    assert not list((workdir / ".state").rglob("*.ckpt"))


def test_the_state_of_an_experiment_is_in_the_main_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmp1"  # DVC deletes it
    experiment.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(experiment)
    assert checkpoints.locate("train-gan") == tmp_path / ".state" / "train-gan"
    monkeypatch.chdir(tmp_path)
    assert checkpoints.locate("train-gan") == Path(".state/train-gan")
    monkeypatch.delenv("DVC_ROOT")
    assert checkpoints.locate("train-gan") == Path(".state/train-gan")


def test_two_experiments_train_one_run_at_once_and_a_working_folder_trains_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [tmp_path / ".state" / "train-gan" / name for name in ("0", "1")]
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    with checkpoints.hold_run(states[0]):
        with pytest.raises(ArtifactError, match="another process is training this run"):
            checkpoints.hold_run(states[1]).__enter__()  # the outputs of this folder are one process's
        monkeypatch.chdir(tmp_path / "second")
        with checkpoints.hold_run(states[1]):
            assert [checkpoints.is_held(checkpoints.name_lock(state)) for state in states] == [True, True]
        with pytest.raises(ArtifactError, match="another process is training this run"):
            checkpoints.hold_run(states[0], waits=False).__enter__()
    assert not list(states[0].parent.iterdir())  # no lock is left


def test_an_experiment_with_the_params_of_another_one_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / ".state" / "train-gan" / "0"
    state.parent.mkdir(parents=True)
    order: list[str] = []
    is_held = threading.Event()

    def train() -> None:
        with FileLock(checkpoints.name_lock(state)):
            is_held.set()
            time.sleep(0.2)
            order.append("first")

    first = threading.Thread(target=train)
    first.start()
    is_held.wait()
    monkeypatch.chdir(tmp_path)
    with checkpoints.hold_run(state):
        order.append("second")
    first.join()
    assert order == ["first", "second"]
    assert "this one waits for its end" in capsys.readouterr().out
