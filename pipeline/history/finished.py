"""Keeps the state of a finished training until DVC has stored its outputs.

DVC hashes, stores and names a stage's outputs after the stage has ended. A kill, a full cache or another stage that
fails in between loses them: DVC runs the stage again, and removes what it had made before. The state therefore stays,
marked with the files of its outputs, and the same training finishes at once, in the same MLflow run. As soon as
dvc.lock names these files and DVC's cache holds them, the next stage or `pipeline doctor --fix` removes the state.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.history import dvc_cache, dvc_lock
from pipeline.runtime import checkpoints, environment

MARK = "outputs.json"  # in a state: the md5 of each file that its training has made


def end(state: Path, *outputs: Path) -> None:
    """Mark a state as finished, with its newest checkpoint only; remove it where no DVC is about to store the outputs.

    Args:
        state: folder of a training's state.
        outputs: the folders that the training has written.
    """
    if not environment.is_set("DVC_STAGE"):
        remove(state)
        return
    files = [path for folder in outputs for path in sorted(folder.rglob("*")) if path.is_file()]
    artifacts.write_json(state / MARK, {path.as_posix(): dvc_lock.hash_file(path) for path in files})
    checkpoints.keep_newest(state)


def remove(state: Path) -> None:
    """Remove a state; one that is removed in part does not count as one."""
    done = state.with_name(state.name + ".tmp")
    shutil.rmtree(done, ignore_errors=True)
    with suppress(FileNotFoundError):  # another process was faster
        os.replace(state, done)
    shutil.rmtree(done, ignore_errors=True)


def is_marked(state: Path) -> bool:
    """Say whether the training of a state has finished."""
    return (state / MARK).exists()


def find_stored() -> list[Path]:
    """Find the states of finished trainings whose outputs dvc.lock names and DVC's cache holds."""
    marked = sorted(path.parent for path in checkpoints.locate("").glob(f"*/*/{MARK}"))
    if not marked:
        return []
    try:
        entries = dvc_cache.list_entries(dvc_cache.list_outputs())
        stored = {(entry.name, entry.md5) for entry in entries if not entry.explain(hashed=False)}
    except ArtifactError:  # no project of DVC's, or one that it cannot read now
        return []
    return [state for state in marked if _read_mark(state).items() <= stored]


def remove_stored() -> None:
    """Remove the states that nothing needs any more; one that is being taken over now stays."""
    for state in find_stored():
        lock = checkpoints.name_lock(state)
        with suppress(OSError, Timeout), FileLock(lock, timeout=0):
            remove(state)
            lock.unlink(missing_ok=True)


def _read_mark(state: Path) -> dict[str, str]:
    """Return the outputs of a state; of a mark that a power cut broke one that nothing has, so that the state stays."""
    try:
        files: dict[str, str] = artifacts.read_json(state / MARK)
    except ArtifactError:
        return {MARK: ""}
    return files
