"""Finds, explains and repairs what a crash left behind in a project's folder.

Nothing here is needed for the next `dvc repro`, which resumes by itself; half-written files take space, and a run that
was killed stays RUNNING in MLflow until the next training of its name.
"""

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from pipeline import artifacts, code
from pipeline.artifacts import ArtifactError
from pipeline.evidence import real_cache
from pipeline.history import costs, dvc_lock, finished
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record
from pipeline.runtime import checkpoints
from pipeline.runtime.preemption import names_dvc, names_stage

log = logging.getLogger(__name__)
DVC_LOCKS = Path(".dvc/tmp/rwlock")
WRITTEN = (
    code.FOLDER,
    costs.FOLDER,
    artifacts.RAW,
    artifacts.PREPARED,
    artifacts.NETWORKS,
    artifacts.RUNS,
    artifacts.REPORTS,
    artifacts.STATE,
)
MARKER = re.compile(r"^(<{7}|={7}|>{7})", re.MULTILINE)


@dataclass(frozen=True)
class Leftover:
    """One finding; `repair` is nothing where there is nothing to repair, or not now, or only by hand."""

    what: str
    meaning: str
    repair: Callable[[], object] | None = None
    by_hand: bool = False


def find_all() -> Iterator[Leftover]:
    """Look through the working folder."""
    yield from find_states()
    yield from find_partial_files()
    yield from find_dvc_locks()
    yield from find_broken_results()


def close_abandoned(state: Path, about: dict[str, Any]) -> dict[str, str]:
    """End the records of a run's other states, whose params, data or code have changed; the caller holds its own.

    Those that an experiment is training now are left alone. Prints in what the last one differs. Returns the tag that
    links a new run to it, or nothing.
    """
    for path in state.parent.glob("*.tmp"):
        shutil.rmtree(path, ignore_errors=True)  # a finished training's state, killed while it was removed
    paths = [
        path
        for path in state.parent.glob("*/record/run.json")
        if path.parents[1] != state and not checkpoints.is_held(checkpoints.name_lock(path.parents[1]))
        if not finished.is_marked(path.parents[1])  # its outputs are still to be stored, perhaps by an experiment
    ]
    others = list(_open_records(sorted(paths, key=lambda path: path.stat().st_mtime)))
    for record in others:
        if record.about["status"] == "RUNNING":
            record.abandon()
    if not others:
        return {}
    before, now = others[-1].about["parameters"], json.loads(json.dumps(about["parameters"]))
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if not (state / "record" / "run.json").exists():
        what = "; ".join(changed) or "data or code changed"
        print(f"{about['name']}: a new run; the interrupted one in {others[-1].folder.parent} does not fit: {what}")
    return {"follows": others[-1].about["id"]}


def _open_records(paths: list[Path]) -> Iterator[Record]:
    """Open the records that can be read; one that a crash broke is named in a warning."""
    for path in paths:
        try:
            yield Record(path.parent)
        except ArtifactError as error:
            log.warning("%s", error)


def find_states() -> Iterator[Leftover]:
    """Find trainings that did not finish, and among them those whose run is still RUNNING though no process has it.

    Also those that did, and whose outputs DVC has or has not stored. Feature networks have no record: theirs are known
    by their checkpoints.
    """
    stored = finished.find_stored()
    for folder in _list_trainings():
        stage = folder.name.replace("-", "@", 1)  # networks-classifier is the stage networks@classifier
        if checkpoints.is_held(folder / "lock"):
            yield Leftover(str(folder), "a process is training this now")
            continue
        for state in sorted(path for path in folder.glob("*/") if path.suffix != ".tmp"):
            if checkpoints.is_held(checkpoints.name_lock(state)):
                yield Leftover(str(state), "an experiment is training this now")
            elif state in stored:
                meaning = "a finished training, whose outputs DVC has stored: its state is no longer needed"
                yield Leftover(str(state), meaning, partial(finished.remove, state))
            elif finished.is_marked(state):
                meaning = f"a finished training, whose outputs DVC has not stored: `dvc repro {stage}` ends it at once"
                yield Leftover(str(state), meaning)
            elif (state / "record" / "run.json").exists():
                yield _judge_state(state / "record")
            elif found := checkpoints.find(state):
                yield Leftover(str(state), f"an interrupted training: {_say_where(stage, found[1])}")


def _list_trainings() -> list[Path]:
    """List the folders of states, one per run or feature network."""
    return sorted([*artifacts.STATE.glob("train-*"), *artifacts.STATE.glob("networks-*")])


def _list_held() -> Iterator[Path]:
    """List the folders of states, and the single states, in which a process may be writing now."""
    for folder in _list_trainings():
        if checkpoints.is_held(folder / "lock"):
            yield folder
        yield from (state for state in folder.glob("*/") if checkpoints.is_held(checkpoints.name_lock(state)))


def _say_where(stage: str, step: int) -> str:
    place = f"step {step}" if step else "the beginning"
    return f"`dvc repro {stage}` goes on from {place} if params, data and code are as they were"


def _judge_state(folder: Path) -> Leftover:
    try:
        record = Record(folder)
    except ArtifactError as error:
        return Leftover(str(folder.parent), f"an interrupted training without its record: {error}", by_hand=True)
    found = checkpoints.find(folder.parent)
    goes_on = _say_where(f"train@{record.about['name']}", found[1] if found else 0)
    if record.about["status"] != "RUNNING":
        return Leftover(str(folder.parent), f"an interrupted training ({record.about['status']}): {goes_on}")
    return Leftover(
        str(folder.parent),
        f"a training that was killed without a word; MLflow shows it RUNNING; {goes_on}",
        partial(_close, record),
    )


def _close(record: Record) -> None:
    """Set the run's status to KILLED, with the time of its last line, here and in MLflow."""
    record.abandon()
    MlflowSync(record).finish()


def find_partial_files() -> Iterator[Leftover]:
    """Find files that were being written: they are renamed when they are complete, so these never were.

    Only folders that the stages write are searched: your own files may have such names too, in data/own or elsewhere.
    Files that a running training or a stage of a running `dvc` may be writing now are not touched.
    """
    trained = set(_list_held())
    runs = _dvc_runs()
    for root in WRITTEN:
        for path in sorted([*root.rglob("*.tmp"), *root.rglob("*.part")]):
            if trained & {*path.parents} or any(parent.suffix == ".tmp" for parent in path.parents):
                continue  # the state of a running training; the content of what is named already
            if runs and (root != artifacts.STATE or real_cache.FOLDER in path.parents):
                yield Leftover(str(path), "a stage runs, and may be writing it now")
                continue
            remove = partial(shutil.rmtree, path) if path.is_dir() else path.unlink
            yield Leftover(str(path), "its writing was interrupted; nothing reads it", remove)


def find_dvc_locks() -> Iterator[Leftover]:
    """Find entries of DVC's table of locks that no dvc process holds, or a table that DVC can no longer read."""
    if not DVC_LOCKS.exists():
        return
    runs = _dvc_runs()
    try:
        table = json.loads(DVC_LOCKS.read_text(encoding="utf-8"))
        holders = {int(entry["pid"]) for entry in _list_entries(table)}
    except (ValueError, TypeError, KeyError, AttributeError):
        meaning = "DVC's table of locks is cut off, and every dvc command stops at it"
        yield Leftover(str(DVC_LOCKS), meaning, None if runs else DVC_LOCKS.unlink)
        return
    for pid in sorted(holders):
        if not _is_dvc(pid):
            what = "another program now" if psutil.pid_exists(pid) else "gone"
            meaning = f"DVC's table of locks names process {pid}, which is {what}"
            yield Leftover(str(DVC_LOCKS), meaning, partial(_release, pid))


def _list_entries(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """List the holders in {"write": {path: holder}, "read": {path: [holder, ...]}}."""
    yield from table.get("write", {}).values()
    for readers in table.get("read", {}).values():
        yield from readers


def _release(pid: int) -> None:
    """Write DVC's table of locks without the entries of one process; those of others stay."""
    table = json.loads(DVC_LOCKS.read_text(encoding="utf-8"))
    write = {path: entry for path, entry in table.get("write", {}).items() if int(entry["pid"]) != pid}
    read = {
        path: [entry for entry in entries if int(entry["pid"]) != pid]
        for path, entries in table.get("read", {}).items()
    }
    kept = {"write": write, "read": {path: entries for path, entries in read.items() if entries}}
    artifacts.write_json(DVC_LOCKS, {name: entries for name, entries in kept.items() if entries})


def find_broken_results() -> Iterator[Leftover]:
    """Find what a merge, a full disk or a crash did to dvc.lock; only its owner can say which version is right."""
    text = dvc_lock.PATH.read_text(encoding="utf-8", errors="replace") if dvc_lock.PATH.exists() else "schema: '2.0'\n"
    bring = "`git checkout -- dvc.lock` brings the committed one back, and `dvc repro` makes what it lacks"
    if MARKER.search(text):
        what = "it has the marks of a merge: `git checkout --ours dvc.lock` or `--theirs`, then `dvc repro`"
        yield Leftover(str(dvc_lock.PATH), what, by_hand=True)
    elif not text.strip():
        yield Leftover(str(dvc_lock.PATH), f"it is empty: {bring}", by_hand=True)
    elif not _is_whole(text):
        yield Leftover(str(dvc_lock.PATH), f"it is cut off or broken: {bring}", by_hand=True)


def _is_whole(text: str) -> bool:
    """Say whether dvc.lock is YAML to its last line and each stage's last file has its hash."""
    try:
        content = dvc_lock.parse_lock(text, str(dvc_lock.PATH))
        for stage in content.get("stages", {}).values():
            files = [*stage.get("deps", []), *stage.get("outs", [])]
            if "cmd" not in stage or not files or not all("md5" in file for file in files):
                return False
    except (ArtifactError, TypeError, AttributeError):
        return False
    return text.endswith("\n") and "schema" in content


def _dvc_runs() -> bool:
    """Say whether a dvc process or a stage works in this folder or below: what it holds must not be touched."""
    here = Path.cwd().resolve()
    for process in psutil.process_iter(["cmdline", "cwd"]):
        folder = process.info["cwd"]
        if folder is None or not Path(folder).is_relative_to(here):
            continue
        words = process.info["cmdline"] or []
        if names_dvc(words) or names_stage(words):
            return True
    return False


def _is_dvc(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return names_dvc(psutil.Process(pid).cmdline())
    return False
