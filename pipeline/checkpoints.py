"""Checkpoints that can be trusted: written beside their place and renamed, hashed, finite; a broken one is passed over.

<folder>/step-000001200.ckpt with its SHA-256 in step-000001200.ckpt.sha256; the newest two are kept, so that a crash,
a full disk or a flipped bit leaves a valid one.
"""

import logging
import os
import re
import shutil
from pathlib import Path

from pytorch_lightning import LightningModule, Trainer

from pipeline import artifacts
from pipeline.artifacts import ArtifactError

log = logging.getLogger(__name__)
KEPT = 2
PATTERN = re.compile(r"step-(\d{9})\.ckpt")


def save(trainer: Trainer, folder: Path, step: int) -> None:
    """Save the training's state after `step`; every process calls it, the first one writes.

    What cannot be written (a full disk) or must not be kept (weights that are not finite) becomes a warning: the
    training and the checkpoints before it stay.
    """
    partial = folder / "partial.tmp"
    try:
        if broken := find_broken(trainer.lightning_module):
            log.warning("no checkpoint at step %d: %s is not finite", step, broken)
            return
        trainer.save_checkpoint(partial)
        if not trainer.is_global_zero:
            return
        target = folder / f"step-{step:09d}.ckpt"
        _synchronize(partial)
        target.with_suffix(".ckpt.sha256").write_text(artifacts.digest(partial), encoding="ascii")
        os.replace(partial, target)
        _synchronize(folder)
    except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError
        partial.unlink(missing_ok=True)
        log.warning("no checkpoint at step %d: %s", step, error)
        return
    for path in list_steps(folder)[KEPT:]:
        _remove(path)


def find_broken(module: LightningModule) -> str:
    """Return the name of the first weight or buffer that is not finite, or nothing."""
    tensors = module.state_dict().items()
    return next((name for name, value in tensors if value.is_floating_point() and not value.isfinite().all()), "")


def list_steps(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, newest first, whatever their state."""
    return sorted((path for path in folder.glob("step-*.ckpt") if PATTERN.fullmatch(path.name)), reverse=True)


def find(folder: Path) -> tuple[Path, int] | None:
    """Return the newest checkpoint whose content has its hash, and its step; broken ones are named in a warning."""
    for path in list_steps(folder):
        hashed = path.with_suffix(".ckpt.sha256")
        expected = hashed.read_text(encoding="ascii") if hashed.exists() else "none"
        found = artifacts.digest(path)
        if found == expected:
            match = PATTERN.fullmatch(path.name)
            assert match
            return path, int(match[1])
        log.warning("%s is broken: expected SHA-256 %s, found %s; an older one is used", path, expected, found)
    return None


def require_space(folder: Path, module: LightningModule) -> None:
    """Refuse to start where the checkpoints would not fit: weights, two Adam moments and gradients, KEPT + 1 times.

    Raises:
        ArtifactError: with what is needed and what is free.
    """
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    needed, free = 3 * size * (KEPT + 1) + 2**24, shutil.disk_usage(folder).free
    if free < needed:
        msg = f"{folder}: checkpoints need about {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free"
        raise ArtifactError(msg)


def _synchronize(path: Path) -> None:
    """Make a file or a folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    path.unlink()
    path.with_suffix(".ckpt.sha256").unlink(missing_ok=True)
