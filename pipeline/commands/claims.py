"""Compares the numbers in this folder with the committed ones, a line per run; `make repro` ends with it.

    pipeline claims

A run that has other settings than the committed one is another experiment, and its line names what differs. A run that
git does not have is no claim, and its line says so. `pipeline reproduce` makes the committed numbers again, in a fresh
clone.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import RESULTS, call, make_parser
from pipeline.commands.compare import read_file, read_lock
from pipeline.commands.reproduce import (
    EXACT,
    NEAR,
    WITHIN,
    is_retrained,
    judge_claims,
    list_outputs,
    read_claims,
)
from pipeline.evidence import trainings
from pipeline.evidence.protocol import check_content, list_differences
from pipeline.evidence.uncertainty import format_number
from pipeline.evidence.values import find_value, is_measurement, load_values, sort_names

REPRODUCED = (EXACT, WITHIN, NEAR)
PLACES = ("dvc.lock", str(artifacts.REPORTS))


def main(arguments: list[str]) -> int:
    """Print a line per run of params.yaml, and what to do with changed files."""
    make_parser("claims", __doc__).parse_args(arguments)
    committed, lock = (list_outputs(read_lock(revision)) for revision in ("HEAD", ""))
    for run in params.load().runs:
        if not (artifacts.REPORTS / "runs" / run / "metrics.json").exists():
            print(f"{run}: no numbers yet; `dvc repro evaluate@{run}` makes them")
            continue
        claim, found = read_committed(run), read_claims(Path(), run)
        spread = trainings.read(Path(), run, claim) if claim and is_retrained(committed, lock, run) else None
        for line in compare_run(run, claim, found, spread):
            print(line)
    changed = call(["git", "status", "--porcelain", "--", *PLACES], Path.cwd()).splitlines()
    if changed:
        print(
            f"{len(changed)} files of results differ from the last commit: `git commit -a` makes these numbers the "
            f"claims,\n`git restore {' '.join(PLACES)} && dvc checkout` brings the committed results back"
        )
    return 0


def read_committed(run: str) -> dict[str, Any] | None:
    """Return the metrics, sets and protocol of a run in the last commit, or None if it has no such run."""
    try:
        claims = {stem: read_file("HEAD", f"{artifacts.REPORTS}/runs/{run}/{stem}.json") for stem in RESULTS}
    except ArtifactError:
        return None
    check_content(claims["protocol"], f"HEAD:{run}: protocol.json")
    return claims


def compare_run(
    run: str, claim: Mapping[str, Any] | None, found: Mapping[str, Any], spread: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Yield the line of a run with its first number, and a line for each claim that did not come out again.

    spread: the run's numbers over seeds; None where its model came out equal.
    """
    values = load_values(found["protocol"]["protocol"]["metric"]["name"])
    first = next(name for name in sort_names(values, found["metrics"]) if is_measurement(values, name))
    unit = find_value(values, first).unit
    number = f"{run}: {first} {format_number(found['metrics'][first])}{f' {unit}' if unit else ''}"
    if claim is None:
        yield f"{number}; git has no claim of this run"
        return
    if others := list_settings(claim, found):
        yield f"{number}; no claim of these settings: the committed run has other {', '.join(others)}"
        return
    verdicts = {row[0]: row for row in judge_claims(claim, found, "see `pipeline reproduce`", spread)}
    good = sum(row[-1].startswith(REPRODUCED) for row in verdicts.values())
    exact = sum(row[-1] == EXACT for row in verdicts.values())
    claimed = "not among the claims"
    if first in verdicts:
        _, value, interval, *_ = verdicts[first]
        claimed = f"claimed {format_number(value)} {interval}".rstrip()
    yield f"{number}, {claimed}; {good} of {len(verdicts)} claims reproduced, {exact} of them bit for bit"
    for metric, value, interval, now, verdict in verdicts.values():
        if verdict not in {EXACT, WITHIN}:  # within the spread is listed too: it is outside the interval
            claimed = f"{format_number(value)} {interval}".rstrip()
            yield f"  {metric} {format_number(now)}, claimed {claimed}: {verdict}"


def list_settings(claim: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings by which two runs are not the same experiment."""
    return [name for name, *_ in list_differences(claim["protocol"]["run"], found["protocol"]["run"])]
