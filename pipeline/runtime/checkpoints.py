"""Finds, locks and clears the checkpoints of trainings, which writer.py writes; a broken one is skipped.

<folder>/step-000001200.ckpt with its SHA-256 in step-000001200.ckpt.sha256; the newest two are kept, so that a crash,
a full disk or a flipped bit leaves a valid one. Every stage asks which states nothing needs any more, so nothing here
imports torch.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.runtime import environment

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

log = logging.getLogger(__name__)
KEPT = 2
PATIENCE = 1.0  # seconds that a lock may be held by one who only looks whether it is
PATTERN = re.compile(r"step-(\d{9})\.ckpt")


def list_steps(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, newest first, whatever their state."""
    return sorted((path for path in folder.glob("step-*.ckpt") if PATTERN.fullmatch(path.name)), reverse=True)


def find(folder: Path) -> tuple[Path, int] | None:
    """Return the newest checkpoint whose content has its hash, and its step; broken ones are named in a warning."""
    for path in list_steps(folder):
        expected = name_hash(path).read_text(encoding="ascii") if name_hash(path).exists() else "none"
        found = artifacts.digest(path)
        if found == expected:
            return path, _step_of(path)
        log.warning("%s is broken: expected SHA-256 %s, found %s; an older one is used", path, expected, found)
    return None


def discard_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps: they are broken, and would count as the newest ones that are kept."""
    for path in list_steps(folder):
        if _step_of(path) > step:
            remove(path)


def keep_newest(folder: Path) -> None:
    """Remove all checkpoints but the newest valid one."""
    kept = find(folder)
    for path in list_steps(folder):
        if kept and path != kept[0]:
            remove(path)


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
        with _lock(state, path, -1 if waits else PATIENCE):
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
    with _lock(folder, folder / "lock", PATIENCE):
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


def name_hash(path: Path) -> Path:
    """Return the path of a checkpoint's hash."""
    return path.with_suffix(".ckpt.sha256")


def _step_of(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def remove(path: Path) -> None:
    """Remove a checkpoint and its hash."""
    path.unlink()
    name_hash(path).unlink(missing_ok=True)
