"""The faults that tests survive, and the table of them: reports/faults.json and reports/faults.md.

    @pytest.mark.fault(2, 7)        # on a test: it covers faults 2 and 7 of TITLES
    python -m pytest --faults       # writes both files; `make test` and `make test-slow` pass --faults

A session changes only the entries of tests that it ran. An entry whose outcome is as recorded keeps its seconds, so
that a run that finds nothing new changes no file. A session of the whole suite drops tests that no longer exist.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "reports"
FIRST = (
    "SIGTERM during a stage (preemption, `docker stop`, `timeout`)",
    "GAN resumed at half an epoch",
    "loss that is not finite",
    "kill -9 while a checkpoint is written",
    "disk full while a checkpoint is written",
    "DVC cache full",
    "DVC killed, then `dvc repro` again",
    "MLflow server down",
    "resume at the border of an epoch",
    "paths and NumPy values among hyper-parameters",
    "time-based checkpoint of a training with two optimizers",
    "SIGTERM with several processes",
    "evil checkpoint by address",
    "evil pickle model in MLflow",
    "corrupted object in DVC's cache",
    "flipped bit in a checkpoint",
    "restart after a killed rank",
    "four first starts at once on a fresh database",
    "16-bit, float and RGBA pictures",
    "wrong value range or dtype into FID",
    "FID of too few samples",
    "metrics of images that are not finite",
    "evaluation on two ranks",
    "data order after a resume with workers",
    "EMA and an exception in validation",
    "exception while closing hides the training's error",
    "SIGKILL leaves a run RUNNING",
    "asynchronous logging and an outage",
    "same seed, other thread count or CPU",
    "one against several processes with batch norm",
    "ordered text shuffled by DDP",
    "truncated or broken picture in a data set",
    "rank that hangs, network cut",
    "attacks by zip and tar, size bombs",
    "download without SHA-256, fall-back to http",
    "compromised or vulnerable dependency",
    "training data in the test split, duplicates",
    "text with byte-order mark, other encodings, CRLF, NUL, or empty",
    "parameter of more than 250 characters",
    "infinite metric",
    "parameter changed before a resume",
    "mode collapse, posterior collapse",
    "generator that copies training data",
    "secret in a text corpus",
    "MLflow server without login, foreign Host or Origin",
    "DVC's lock table cut off, or a process id used again",
    "dvc.lock with merge markers, empty or cut off",
    "picture of too many megapixels",
    "two seeds that differ by 1 % in FID",
    "defaults of MLflow that fail at a training's end",
    "read-only output, missing folder, port in use, no permission",
)
TITLES = dict(enumerate(FIRST)) | {
    52: "kill, full cache or failure after a training's end, before DVC has stored its outputs",
    53: "process or node with another run, params, data, code or versions",
    54: "disk full for seconds while a training's history is written",
    55: "torn line in a training's history",
    56: "temporary folder full when several processes end",
    57: "environment variable that holds nonsense",
    58: "clock set back by an hour during a training",
    59: "two `dvc repro` at once in one clone",
    60: "two clones that reproduce at once over one cache",
    61: "cache on a file system without hard links",
    64: "YAML file that asks for hours or for all memory: nesting, aliases, long values",
    65: "model of somebody else whose code would run",
    66: "seal that does not name a file; weights of another size or type, or not finite",
    67: "record of somebody else: names that are paths, links, huge pictures, broken ones",
    68: "login of a mirror or of MLflow's server in a message",
    69: "https redirected to plain http on this machine",
    70: "DVC's table of hashes, a pickle in a folder that every account can write",
    71: "mirror that drips sizes of chunks or trailers, or lies about a range",
}

outcomes: dict[str, list[tuple[str, str]]] = defaultdict(list)  # of each test function that ran: outcome and reason
seconds: dict[str, float] = defaultdict(float)
numbers: dict[str, tuple[int, ...]] = {}  # of each collected test function


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --faults."""
    parser.addoption("--faults", action="store_true", help="write reports/faults.json and reports/faults.md")


def note_faults(items: list[pytest.Item]) -> None:
    """Read the marks of all tests, before -m and -k leave some out; refuse numbers that no fault has."""
    for item in items:
        found = {number for mark in item.iter_markers("fault") for number in mark.args}
        if wrong := found - TITLES.keys():
            msg = f"{item.nodeid}: no fault has the numbers {wrong}; tests/faults.py lists them"
            raise pytest.UsageError(msg)
        if found:
            numbers[name_of(item)] = tuple(sorted({*found, *numbers.get(name_of(item), ())}))


def name_of(item: pytest.Item | pytest.TestReport) -> str:
    """Return the test's id without its parameters."""
    return item.nodeid.partition("[")[0]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note outcome and time of each phase of a test; under pytest-xdist the workers' reports come here too."""
    name = name_of(report)
    seconds[name] += report.duration
    if report.when == "call" or report.outcome != "passed":
        reason = str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
        outcomes[name].append((report.outcome, reason))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over the marks that a worker of pytest-xdist has read: the process that writes collects nothing itself."""
    numbers.update(getattr(node, "workeroutput", {}).get("faults", {}))  # a worker that crashed has left nothing


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = numbers
        return
    ran = {name: summarize(name) for name in outcomes if name in numbers}
    if not session.config.getoption("--faults") or not ran:
        return
    path = FOLDER / "faults.json"
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    everything = session.config.args_source is session.config.ArgsSource.TESTPATHS
    whole = everything and not session.testsfailed  # a file that could not be read has not lost its tests
    table = merge(recorded, ran, numbers, whole=whole)
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(render(table), encoding="utf-8")


def summarize(name: str) -> dict[str, Any]:
    """Return the entry of one test that ran: the worst outcome of its parameters counts, a skipped one does not."""
    found = {outcome for outcome, _ in outcomes[name]}
    if found == {"skipped"}:
        reasons = sorted({reason for _, reason in outcomes[name]})
        return {"outcome": "skipped", "reason": "; ".join(reasons), "seconds": round(seconds[name], 1)}
    return {"outcome": "failed" if "failed" in found else "survived", "seconds": round(seconds[name], 1)}


def merge(
    recorded: dict[str, Any], ran: dict[str, dict[str, Any]], known: dict[str, tuple[int, ...]], *, whole: bool
) -> dict[str, Any]:
    """Put what ran over what is recorded.

    Args:
        recorded: the content of faults.json.
        ran: the entry of each test that ran in this session.
        known: the numbers of each collected test.
        whole: whether every test was collected, so that another one no longer exists.
    """
    table = {}
    for number, title in TITLES.items():
        before = recorded.get(str(number), {}).get("tests", {})
        tests = {name: entry for name, entry in before.items() if number in known.get(name, () if whole else (number,))}
        for name in sorted(name for name in ran if number in known[name]):
            old, new = tests.get(name, {}), ran[name]
            if {**old, "seconds": 0} != {**new, "seconds": 0}:
                tests[name] = new
        reached = [entry["outcome"] for entry in tests.values()]
        order = ("failed", "survived", "skipped")
        outcome = next((outcome for outcome in order if outcome in reached), "not covered")
        total = round(sum(entry["seconds"] for entry in tests.values()), 1)
        entry = {"title": title, "outcome": outcome, "seconds": total, "tests": dict(sorted(tests.items()))}
        table[str(number)] = entry
    return table


def render(table: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Faults, and the tests that they are survived in\n",
        "`make test` and `make test-slow` write this table (see tests/faults.py).",
        "The seconds are those of the run that last changed an outcome.\n",
        "| | fault | outcome | tests | s |",
        "|---|---|---|---|---|",
    ]
    for number, entry in table.items():
        tests = []
        for name, test in entry["tests"].items():
            said = "" if test["outcome"] == "survived" else f" ({test['outcome']}"
            said += f": {test['reason']})" if test.get("reason") else ")" * bool(said)
            tests.append(f"`{name.removeprefix('tests/')}`{said}")
        cells = (number, entry["title"], entry["outcome"], "<br>".join(tests), f"{entry['seconds']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
