"""Checkpoints: written whole or not at all, and a broken one is passed over."""

import logging
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from pipeline import checkpoints
from pipeline.artifacts import ArtifactError


class Fake(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)


class Writer:
    """What `save` needs of a Trainer: the real one writes the same file, through torch.save."""

    is_global_zero = True

    def __init__(self) -> None:
        self.lightning_module = Fake()

    def save_checkpoint(self, path: Path) -> None:
        torch.save(self.lightning_module.state_dict(), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three saved steps, of which two are kept."""
    for step in (5, 10, 15):
        checkpoints.save(Writer(), tmp_path, step)  # type: ignore[arg-type]
    return tmp_path


def found_step(folder: Path) -> int:
    found = checkpoints.find(folder)
    assert found
    return found[1]


def test_the_newest_two_are_kept_with_their_hashes_and_nothing_else(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    kept = ["step-000000010.ckpt", "step-000000015.ckpt"]
    assert names == sorted([*kept, *(f"{name}.sha256" for name in kept)])
    assert found_step(folder) == 15


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
    damage(folder / "step-000000015.ckpt")
    with caplog.at_level(logging.WARNING):
        assert found_step(folder) == 10
    assert "step-000000015.ckpt is broken: expected SHA-256" in caplog.text


def test_without_any_valid_checkpoint_there_is_none(folder: Path) -> None:
    for path in checkpoints.list_steps(folder):
        flip_a_bit(path)
    assert checkpoints.find(folder) is None


@pytest.mark.fault(4)
def test_a_full_disk_is_a_warning_and_leaves_the_checkpoints_as_they_were(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        checkpoints.save(Writer(), folder, 20)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "no checkpoint at step 20" in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.fault(2)
def test_weights_that_are_not_finite_are_never_kept(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer()
    with torch.no_grad():
        writer.lightning_module.layer.bias[3] = torch.nan
    checkpoints.save(writer, folder, 20)  # type: ignore[arg-type]
    assert "no checkpoint at step 20: layer.bias is not finite" in caplog.text
    assert found_step(folder) == 15


@pytest.mark.fault(4)
def test_a_disk_too_small_for_the_checkpoints_is_refused_before_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(ArtifactError, match=r"checkpoints need about \d+ MiB, 1 MiB are free"):
        checkpoints.require_space(folder, Fake())
