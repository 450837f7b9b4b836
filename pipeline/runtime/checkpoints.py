"""Reliable checkpoints: written under another name and renamed, hashed, finite; a broken one is skipped.

<folder>/step-000001200.ckpt with its SHA-256 in step-000001200.ckpt.sha256; the newest two are kept, so that a crash,
a full disk or a flipped bit leaves a valid one.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.runtime import environment

log = logging.getLogger(__name__)
KEPT = 2
PATTERN = re.compile(r"step-(\d{9})\.ckpt")


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
            with _sidecar(target).open("w", encoding="ascii") as file:
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
    for path in list_steps(folder)[KEPT:]:
        _remove(path)
    return True


def find_broken(values: Any, name: str = "") -> str:
    """Return the dotted name of the first tensor in nested values that is not finite, or nothing."""
    if isinstance(values, Tensor):
        return "" if not values.is_floating_point() or bool(values.isfinite().all()) else name
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    return next((found for key, value in pairs if (found := find_broken(value, f"{name}.{key}".lstrip(".")))), "")


def list_steps(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, newest first, whatever their state."""
    return sorted((path for path in folder.glob("step-*.ckpt") if PATTERN.fullmatch(path.name)), reverse=True)


def find(folder: Path) -> tuple[Path, int] | None:
    """Return the newest checkpoint whose content has its hash, and its step; broken ones are named in a warning."""
    for path in list_steps(folder):
        expected = _sidecar(path).read_text(encoding="ascii") if _sidecar(path).exists() else "none"
        found = artifacts.digest(path)
        if found == expected:
            return path, _step_of(path)
        log.warning("%s is broken: expected SHA-256 %s, found %s; an older one is used", path, expected, found)
    return None


def discard_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps: they are broken, and would count as the newest ones that are kept."""
    for path in list_steps(folder):
        if _step_of(path) > step:
            _remove(path)


def keep_newest(folder: Path) -> None:
    """Remove all checkpoints but the newest valid one."""
    kept = find(folder)
    for path in list_steps(folder):
        if kept and path != kept[0]:
            _remove(path)


def locate(name: str) -> Path:
    """Return the folder of the states of a run or a feature network, such as .state/train-gan.

    In a temporary experiment it is the main project's, which DVC names in DVC_ROOT: DVC deletes the working folder,
    and the same experiment started again works in another one.
    """
    root = environment.read_root()
    return (Path() if root == Path.cwd() else root) / artifacts.STATE / name


@contextmanager
def hold_run(state: Path, *, waits: bool = True) -> Iterator[None]:
    """Let no other process train a run in this working folder, nor with this state.

    Two experiments may train a run at once. With the same params they have the same state, and the second one waits.

    Raises:
        ArtifactError: if another process trains the run in this folder, or with this state and `waits` is false.
    """
    with hold(artifacts.STATE / state.parent.name):
        require_writable(state.parent)
        path = name_lock(state)
        if waits and is_held(path):
            print(f"{state}: an experiment with the same params is training; this one waits for its end")
        with _lock(state, path, -1 if waits else 0):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)  # by its holder: one who waits makes another file


def name_lock(state: Path) -> Path:
    """Return the lock file of a state."""
    return state.with_name(f"{state.name}.lock")


def is_held(lock: Path) -> bool:
    """Say whether a process holds a lock file; one that is not there is not made."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock a run's folder of states: two trainers never write one.

    Raises:
        ArtifactError: if another process holds it.
    """
    require_writable(folder)
    with _lock(folder, folder / "lock", 0):
        yield


@contextmanager
def _lock(folder: Path, path: Path, seconds: float) -> Iterator[None]:
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        msg = f"{folder}: another process is training this run; wait for it, or stop it"
        raise ArtifactError(msg) from None
    try:
        yield
    finally:
        lock.release()


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


def require_writable(*folders: Path) -> None:
    """Make the folders and write to each, so that a training does not fail after hours because it cannot write.

    Raises:
        ArtifactError: with the folder's name and the system's reason.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f"probe-{os.getpid()}.tmp"
            probe.write_bytes(b"0")
            probe.unlink()
        except OSError as error:
            msg = f"{folder}: cannot be written: {error}"
            raise ArtifactError(msg) from error


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".ckpt.sha256")


def _step_of(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def _synchronize(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    path.unlink()
    _sidecar(path).unlink(missing_ok=True)
