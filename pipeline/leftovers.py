"""What a crash can leave behind in a project's folder, what it means, and its repair.

Nothing here is needed for the next `dvc repro`, which resumes by itself; half-written files take space, and a run that
was killed without a word stays RUNNING in MLflow.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from pipeline import artifacts, checkpoints
from pipeline.record import Record
from pipeline.tracking import Mirror
from pipeline.training import STATE

DVC_LOCKS = Path(".dvc/tmp/rwlock")


@dataclass(frozen=True)
class Leftover:
    """One finding; `repair` is nothing where there is nothing to repair."""

    what: str
    meaning: str
    repair: Callable[[], object] | None = None


def find_all() -> Iterator[Leftover]:
    """Look through the working folder."""
    yield from find_states()
    yield from find_partial_files()
    yield from find_dvc_locks()


def find_states() -> Iterator[Leftover]:
    """Find trainings that did not finish, and among them those whose run is still RUNNING though no process has it."""
    for folder in sorted(STATE.glob("train-*")):
        try:
            with FileLock(folder / "lock", timeout=0):
                pass
        except Timeout:
            yield Leftover(str(folder), "a process is training this run now")
            continue
        for path in sorted(folder.glob("*/record/run.json")):
            yield _judge_state(path.parent)


def _judge_state(folder: Path) -> Leftover:
    record = Record(folder)
    found = checkpoints.find(folder.parent)
    step = f"step {found[1]}" if found else "the beginning"
    goes_on = f"`dvc repro train@{record.about['name']}` goes on from {step} if params, data and code are as they were"
    if record.about["status"] != "RUNNING":
        return Leftover(str(folder.parent), f"an interrupted training ({record.about['status']}): {goes_on}")
    return Leftover(
        str(folder.parent),
        f"a training that was killed without a word; MLflow shows it RUNNING; {goes_on}",
        lambda: _close(record),
    )


def _close(record: Record) -> None:
    """Set the run's status to KILLED, with the time of its last line, here and in MLflow."""
    lines = record.read()
    record.about |= {"status": "KILLED", "ended": lines[-1]["time"] if lines else time.time()}
    record.about["tags"]["failure"] = "the process ended without a word"
    record.save()
    Mirror(record).close()


def find_partial_files() -> Iterator[Leftover]:
    """Find files that were being written: they are renamed when they are complete, so these never were."""
    for root in (artifacts.RAW.parent, artifacts.REPORTS, STATE):
        for pattern in ("*.tmp", "*.part"):
            for path in sorted(root.rglob(pattern)):
                yield Leftover(str(path), "a file whose writing was interrupted; nothing reads it", path.unlink)


def find_dvc_locks() -> Iterator[Leftover]:
    """Find entries of DVC's rwlock whose process is gone, or a file that DVC can no longer read."""
    if not DVC_LOCKS.exists():
        return
    text = DVC_LOCKS.read_text(encoding="utf-8")
    try:
        entries = json.loads(text or "{}")
    except json.JSONDecodeError:
        meaning = "DVC's table of locks is cut off, and every dvc command stops at it"
        yield Leftover(str(DVC_LOCKS), meaning, None if _dvc_runs() else DVC_LOCKS.unlink)
        return
    readers = [reader for entry in entries.values() for reader in entry.get("read", [])]
    holders = {
        int(entry["pid"]) for entry in [*readers, *(entry["write"] for entry in entries.values() if "write" in entry)]
    }
    for pid in sorted(holders):
        if not psutil.pid_exists(pid):
            meaning = f"DVC's table of locks names process {pid}, which is gone"
            yield Leftover(str(DVC_LOCKS), meaning, None if _dvc_runs() else DVC_LOCKS.unlink)
            return


def _dvc_runs() -> bool:
    """Say whether a dvc process works in this folder: its locks must not be touched."""
    here = str(Path.cwd())
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if process.info["cwd"] == here and any(Path(word).name == "dvc" for word in words[:3]):
            return True
    return False
