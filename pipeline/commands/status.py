"""Says where the project stands: its runs, their numbers, what is not up to date and why, and what to do next.

    pipeline status          # at most ten runs, those with something to do first
    pipeline status --all
    pipeline status gan      # one run, and everything that it waits for

done            the number comes from the present parameters, data and code
stale           the number comes from others: the first ones that changed are named
training        a process is training it; the time that is left at its present pace is shown
working         a process is running another of its stages
interrupted     `pipeline repro` resumes it from the step that is shown
not here        its number is committed; `dvc pull` or `pipeline repro` brings its files
never run       it has no number

A change of code has a line of its own below the table: `pipeline repro check` finds the runs that it concerns.
"""

import ast
import contextlib
import json
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.commands import align_table, make_parser
from pipeline.evidence.protocol import list_differences
from pipeline.evidence.values import match_name
from pipeline.formats.download import hide_login
from pipeline.history import costs, dvc_lock, dvc_plan, finished
from pipeline.runtime import checkpoints, environment

SHOWN = 10  # runs
CAUSES = 2  # that are named per run
STAGES = 5  # that are named
ABSENT = ("deleted", "not in cache")  # what DVC says of files that a clone lacks
LINES = 50  # of a training's record, from which its pace is taken
DONE, NEVER, ABSENT_RUN, WORKING = "done", "never run", "not here", "working"
PORT = 5000  # of `pipeline ui`


@dataclass(frozen=True)
class Changes:
    """What DVC says is not up to date: by stage instance (thing, how) pairs; the instances that each one needs.

    busy: instances that are being made now, or whose inputs are.
    """

    found: Mapping[str, Sequence[tuple[str, str]]]
    needs: Mapping[str, set[str]]
    busy: Collection[str]

    def find_all_needed(self, instance: str) -> set[str]:
        """Return an instance and all that it needs, but the stage check, which every one needs."""
        found, waiting = set(), {instance}
        while waiting:
            name = waiting.pop()
            found.add(name)
            waiting |= self.needs.get(name, set()) - found - {"check"}
        return found

    def list_causes(self, instance: str) -> list[tuple[str, str]]:
        """Return the changes of an instance and of all that it needs."""
        return [change for name in sorted(self.find_all_needed(instance)) for change in self.found.get(name, ())]

    def list_stale(self) -> list[str]:
        """List the instances that are not up to date, or need one that is not."""
        changed = self.found.keys() - {"check"}
        return [name for name in self.needs if changed & self.find_all_needed(name)]

    @property
    def is_code_changed(self) -> bool:
        """Whether the code is another than the stage check has seen."""
        return (plugins.PACKAGE.name, "modified") in self.found.get("check", ())


@dataclass(frozen=True)
class Row:
    """One run: its name, its state, more about that, and its first number."""

    name: str
    state: str
    more: str
    number: str


def main(arguments: list[str]) -> int:
    """Print the table and three lines."""
    parser = make_parser("status", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="only these runs")
    parser.add_argument("--all", action="store_true", help="every run, not only the first ten")
    options = parser.parse_args(arguments)
    runs = params.read_mapping(params.PATH, params.SECTIONS_SAID, params.FOLDER).get("runs") or {}
    for name in options.runs:
        if name not in runs:
            msg = f"{params.PATH}: no run {name!r}; there are {', '.join(runs)}"
            raise ArtifactError(msg)
    changes = read_changes()
    rows = [describe_run(name, runs[name], changes) for name in options.runs or runs]
    shown = rows if options.all or options.runs else sorted(rows, key=lambda row: row.state == DONE)[:SHOWN]
    cells = [[row.name, row.state + (f": {row.more}" if row.more else ""), row.number] for row in shown]
    print(align_table(["run", "state", "number"], cells), end="")
    print("\n".join(["", *describe_rest(rows, len(shown), changes)]))
    return 0


def read_changes() -> Changes:
    """Ask DVC.

    Raises:
        ArtifactError: if it cannot read the project, or another of its commands keeps it locked.
    """
    from dvc.lock import LockError

    repo = dvc_plan.open_repo(waits=False)
    listed: dict[str, Any] = {}
    busy = set()
    with dvc_plan.explain(), repo.lock:
        graph = repo.index.graph
        for stage in graph:
            try:
                listed |= stage.status(check_updates=True)
            except LockError:  # `dvc status` would end here
                busy.add(stage.addressing)
    needs = {stage.addressing: {other.addressing for other in graph.successors(stage)} for stage in graph}
    settings = params.read_mapping(params.PATH, params.SECTIONS_SAID, params.FOLDER)
    locked = dvc_lock.read_stages()
    found = {
        name: [leaf for change in flatten(entries) for leaf in split_change(*change, locked.get(name) or {}, settings)]
        for name, entries in listed.items()
    }
    return Changes(found, needs, busy)


def split_change(
    thing: str, how: str, entry: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield the keys below a section of params.yaml that changed since dvc.lock was written; else the change itself."""
    was, now = (entry.get("params") or {}).get(params.PATH.name, {}).get(thing), settings
    for key in thing.split("."):
        now = now.get(key, {}) if isinstance(now, dict) else {}
    leaves = list_differences(was, now) if isinstance(was, dict) and isinstance(now, dict) else []
    yield from [(f"{thing}.{leaf}", how) for leaf, *_ in leaves] or [(thing, how)]


def flatten(entries: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield what changed, and how, of DVC's entries: changed deps and outs, and among them the keys of params.yaml."""
    for entry in entries:
        for kind, things in entry.items() if isinstance(entry, dict) else [(entry, {})]:
            yield from [] if things else [(kind, "modified")]  # changed command, always changed
            for thing, how in things.items():
                yield from how.items() if isinstance(how, dict) else [(thing, how)]


def describe_run(name: str, run: Any, changes: Changes) -> Row:
    """Return the row of a run; `run` is its entry in params.yaml."""
    number = read_number(name, run.get("metric", "") if isinstance(run, dict) else "")
    if training := find_training(name):
        return Row(name, *training, number)
    if working := sorted(changes.find_all_needed(f"evaluate@{name}") & {*changes.busy}):
        return Row(name, WORKING, ", ".join(working[:CAUSES]), number)
    causes = changes.list_causes(f"evaluate@{name}")
    real = [thing for thing, how in causes if how not in ABSENT]
    if not number:
        made = (artifacts.RUNS / name / "model" / artifacts.SEAL).exists()
        return Row(name, NEVER, "it is trained, and has no number yet" if made else "", "")
    if real:
        named = list(dict.fromkeys(real))
        more = f" and {len(named) - CAUSES} more" if len(named) > CAUSES else ""
        return Row(name, "stale", f"{', '.join(named[:CAUSES])}{more} changed", number)
    return Row(name, ABSENT_RUN if any(path_of_run(thing, name) for thing, _ in causes) else DONE, "", number)


def path_of_run(thing: str, name: str) -> bool:
    """Say whether something that changed is a file of a run."""
    return Path(thing).is_relative_to(artifacts.RUNS / name)


def find_training(name: str) -> tuple[str, str] | None:
    """Return the state of a run's training that has not ended, and how far it is; none without one."""
    folder = artifacts.STATE / f"train-{name}"
    begun = [path for path in folder.glob("*/record/run.json") if not finished.is_marked(path.parents[1])]
    if not checkpoints.is_held(folder / "lock"):  # a later training, with other parameters perhaps, has ended
        ended = read_begin(artifacts.RUNS / name / "record" / "run.json")
        begun = [path for path in begun if not read_begin(path) < ended]
    states = sorted(begun, key=lambda path: path.stat().st_mtime)
    if not states:
        return None
    record = states[-1].parent
    steps = artifacts.read_json(record / "run.json").get("parameters", {}).get("model.steps", "?")
    if checkpoints.is_held(folder / "lock"):
        step, left = read_pace(record / "metrics.jsonl", steps)
        return "training", f"step {step} of {steps}{left}"
    saved = max((int(path.stem.partition("-")[2]) for path in record.parent.glob("step-*.ckpt")), default=0)
    return "interrupted", f"at step {saved} of {steps}"


def read_begin(path: Path) -> float:
    """Return when the training of a record began; 0 if it is not known."""
    return float(artifacts.read_json(path).get("started", 0)) if path.exists() else 0.0


def read_pace(path: Path, steps: Any) -> tuple[int, str]:
    """Return the last step of a training's record, and the time that is left at the pace of its last lines."""
    lines = path.read_bytes().rpartition(b"\n")[0].splitlines()[-LINES:] if path.exists() else []
    noted = []
    for line in lines:
        with contextlib.suppress(ValueError):  # a power cut tore it
            noted.append(json.loads(line))
    if not noted:
        return 0, ""
    first, last = noted[0], noted[-1]
    if last["step"] == first["step"] or not isinstance(steps, int):
        return last["step"], ""
    seconds = (steps - last["step"]) * (last["time"] - first["time"]) / (last["step"] - first["step"])
    return last["step"], f", {timedelta(seconds=round(seconds))} left"


def read_number(name: str, metric: str) -> str:
    """Return the first number of a run with its name, or nothing if it has none."""
    path = artifacts.REPORTS / "runs" / name / "metrics.json"
    if not path.exists():
        return ""
    numbers = artifacts.read_json(path)
    templates: Any = dict.fromkeys(list_measurements(metric))
    for template in templates:
        for key in sorted(numbers):
            match = match_name(templates, key)  # the most literal one: fid_infinity_{network} is no fid_{network}
            if match and match.template == template:
                return f"{key} {numbers[key]:.4g}"
    return f"{len(numbers)} numbers"


def list_measurements(metric: str) -> list[str]:
    """Return the templates of a metric's measurements, the headline first, from its source: to import it takes seconds.

    These are the keys of its dictionaries of values whose role is not named, in order.
    """
    path = plugins.PACKAGE / "metrics" / f"{metric}.py"
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
    tables = [node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)]
    pairs = [pair for table in tables for pair in zip(table.keys, table.values, strict=True)]
    return [
        str(key.value)
        for key, call in pairs
        if isinstance(key, ast.Constant) and isinstance(call, ast.Call) and "role" not in {w.arg for w in call.keywords}
    ]


def describe_rest(rows: Sequence[Row], shown: int, changes: Changes) -> Iterator[str]:
    """Yield the lines below the table: how many runs, what is stale, where to look, what to do next."""
    counts = {state: sum(row.state == state for row in rows) for state in dict.fromkeys(row.state for row in rows)}
    hidden = f"; {len(rows) - shown} are not shown, `pipeline status --all` shows them" if shown < len(rows) else ""
    yield f"{len(rows)} runs: {', '.join(f'{count} {state}' for state, count in counts.items())}{hidden}"
    if stale := changes.list_stale():
        more = f" and {len(stale) - STAGES} more" if len(stale) > STAGES else ""
        yield f"{len(stale)} stages are not up to date: {', '.join(stale[:STAGES])}{more}"
    if changes.is_code_changed:
        yield "the code changed: `pipeline repro check` finds the results that this concerns"
    page = artifacts.REPORTS / "index.html"
    yield f"look at: {page if page.exists() else 'no report yet'}; {find_ui()}"
    yield f"next: {choose_next(counts, changes)}"


def find_ui() -> str:
    """Say where MLflow's pages are, or how to start them."""
    if address := environment.read_tracking_uri():
        return f"MLflow at {hide_login(address, address)}"
    with socket.socket() as probe:
        probe.settimeout(0.2)
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            return f"MLflow at http://127.0.0.1:{PORT}"
    return "`pipeline ui` starts MLflow's pages"


def choose_next(counts: Mapping[str, int], changes: Changes) -> str:
    """Return the next command, and for `pipeline repro` the time that its stages took the last time."""
    if counts.get("training") or counts.get(WORKING):
        return "wait, or `pipeline status` again"
    if changes.is_code_changed:
        return "`pipeline repro check`, then `pipeline status`"
    if {"stale", "interrupted", NEVER} & counts.keys():
        return f"`pipeline repro -j 2`{estimate(changes)}"
    if counts.get(ABSENT_RUN):
        return "`dvc checkout` if the cache has the files, `dvc pull` if a remote has them, else `pipeline repro`"
    if changes.found:
        return f"`pipeline repro -j 2`{estimate(changes)}"
    return "`pipeline compare <run> <run>`, or a change of params.yaml"


def estimate(changes: Changes) -> str:
    """Return the time that the stages which have to run took the last time, as far as it is known."""
    waiting = changes.list_stale()
    known = costs.read_known()["stages"]
    past = timedelta(seconds=round(sum(known[name]["seconds"] for name in waiting if name in known)))
    unknown = len(set(waiting) - known.keys())
    said = f", {unknown} of them never ran here" if unknown else ""
    if unknown == len(waiting):
        return f" brings {len(waiting)} stages up to date, which never ran here"
    return f" brings {len(waiting)} stages up to date; the last time they took {past}{said}"
