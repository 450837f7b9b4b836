"""Writes checkpoints: under another name and renamed, hashed, finite."""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.runtime import checkpoints

log = logging.getLogger(__name__)


class Writer(TorchCheckpointIO):
    """Writes the Trainer's checkpoints; `error` says why the last one was not written.

    Lightning's own stages the file in TMPDIR, from where it is copied byte by byte if that is another disk, and raises
    only in the first process, while the other processes wait for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.error = ""
        self.is_checked = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint that is finite, with its hash, durably, complete or not at all.

        Raises:
            ArtifactError: if the first one holds what could not be read again.
        """
        del storage_options
        target = Path(path)
        partial = target.with_name("partial.tmp")
        parts = {name: checkpoint[name] for name in ("state_dict", "optimizer_states")}
        if broken := find_broken(parts):
            self.error = f"{broken} is not finite"
            return
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            self._require_readable(partial)
            target.unlink(missing_ok=True)  # left by an earlier attempt, and broken: the new hash must not vouch for it
            with checkpoints.name_hash(target).open("w", encoding="ascii") as file:
                file.write(artifacts.digest(partial))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            _synchronize(target.parent)
            self.error = ""
        except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError
            if isinstance(error, ArtifactError):
                raise
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            self.error = str(error).partition("\n")[0]

    def _require_readable(self, path: Path) -> None:
        """Read the first checkpoint back: what a plug-in adds to it must be tensors and plain values."""
        if self.is_checked:
            return
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            path.unlink()
            reason = str(error).partition("\n")[0]
            msg = f"no training could resume from a checkpoint of this model, it holds more than plain values: {reason}"
            raise ArtifactError(msg) from error
        self.is_checked = True


def save(trainer: Trainer, folder: Path, step: int) -> bool:
    """Save the training's state after `step` through the trainer's Writer; every process calls it, the first writes.

    A checkpoint that cannot be written (a full disk), or that has weights that are not finite, becomes a warning: the
    training and the checkpoints before it stay.

    Returns:
        Whether the state was saved, in the first process; True in every other process.
    """
    trainer.save_checkpoint(folder / f"step-{step:09d}.ckpt")
    if not trainer.is_global_zero:
        return True
    writer = trainer.strategy.checkpoint_io
    assert isinstance(writer, Writer)
    if writer.error:
        log.warning("no checkpoint at step %d: %s", step, writer.error)
        return False
    for path in checkpoints.list_steps(folder)[checkpoints.KEPT :]:
        checkpoints.remove(path)
    return True


def find_broken(values: Any, name: str = "") -> str:
    """Return the dotted name of the first tensor in nested values that is not finite, or nothing."""
    if isinstance(values, Tensor):
        return "" if not values.is_floating_point() or bool(values.isfinite().all()) else name
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    return next((found for key, value in pairs if (found := find_broken(value, f"{name}.{key}".lstrip(".")))), "")


def _synchronize(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
