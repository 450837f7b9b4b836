"""Makes the committed numbers again in a fresh clone, and says for each whether it is reproduced.

    pipeline reproduce                    # every run of params.yaml, from the raw data on
    pipeline reproduce vae --evaluate     # with the committed weights from DVC's cache: only samples and metrics
    pipeline reproduce --save             # and write reports/reproduction.md

A claim is a measurement in reports/runs/<run>/metrics.json as git has it, with its protocol and its interval. The
interval is over sample sets, or 1.96 standard errors. Floors, spreads, descriptions and counts are not claims. Each
claim ends as "bit for bit", "within the interval" or "not", with the first stage whose output differs, or as "no
verdict" where it has no interval and comes out different. Where the training came out different, as on another kind of
machine, and `pipeline spread` has trained the run with other seeds, a claim that is as near as one more training may be
ends as "within the spread". A claim ends as "not" if its protocol comes out different. Other code and other versions do
not count; a note below the table names them. The status is 0 if no claim ends as "not" or "no verdict". The table is
Markdown on standard output. In a subfolder that is a DVC project of its own, the command is about that project.
"""

import argparse
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import (
    DVC,
    RESULTS,
    align_table,
    call,
    clone_project,
    make_parser,
    require_runs,
    run_in_clone,
)
from pipeline.evidence import trainings
from pipeline.evidence.protocol import check_content, find_differences
from pipeline.evidence.trainings import NETWORK, NOTED
from pipeline.evidence.uncertainty import format_interval, summarize
from pipeline.evidence.values import find_interval, is_measurement, load_values
from pipeline.history import dvc_lock
from pipeline.history.record import describe_environment
from pipeline.params import Params

REPORT = artifacts.REPORTS / "reproduction.md"
EXACT, WITHIN, NEAR = "bit for bit", "within the interval", "within the spread"  # reproduced
NOT, OPEN = "not", "no verdict"


def main(arguments: list[str]) -> int:
    """Run the stages in a clone and print the table."""
    parser = make_parser("reproduce", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs of params.yaml; default: all")
    parser.add_argument("--evaluate", action="store_true", help="take the committed weights, do not train")
    parser.add_argument("--save", action="store_true", help=f"write {REPORT} with the table and what made it")
    options = parser.parse_args(arguments)
    settings = params.load()
    runs = options.runs or list(settings.runs)
    require_runs(runs, settings)
    if not options.evaluate:
        for stage, _, data in (instance.partition("@") for run in runs for instance in list_makers(run, settings)):
            if stage == "fetch":
                require_own(data, settings)
    rows, notes = [], []
    with clone_project("reproduce", "reproduced") as project:
        made = describe_reproduction(options, project)
        claims = {run: read_claims(project, run) for run in runs}
        spreads = {run: trainings.read(project, run, claims[run]) for run in runs}
        committed = read_outputs(project)
        repeat(project, runs, settings, evaluate=options.evaluate)
        lock = read_outputs(project)
        for run in runs:
            found = read_claims(project, run)
            first = find_first(committed, lock, run, settings)
            spread = spreads[run] if is_retrained(committed, lock, run) else None
            rows += [(run, *row) for row in judge_claims(claims[run], found, first, spread)]
            notes += [f"{run}: {note}" for note in note_versions(claims[run], found)]
    table = format_table(rows, notes)
    print(table, end="")
    if options.save:
        REPORT.write_text(f"{made}\n\n{table}", encoding="utf-8")
    return int(any(row[-1].startswith((NOT, OPEN)) for row in rows))


def require_own(data: str, settings: Params) -> None:
    """Refuse to start from your own files where git has none of them: a clone would find nothing.

    Raises:
        ArtifactError: with the key of their path.
    """
    source = settings.data[data]
    if not source.READS_PATH or Path(source.path).is_absolute():
        return
    listed = call(["git", "ls-files", "-z", "--", source.path, f"{source.path}.dvc"], Path.cwd())
    if all(Path(name).name.startswith(".") for name in listed.split("\0") if name):
        msg = (
            f"data.{data}.path: git has no file of {source.path}, so a clone has none; "
            "`pipeline reproduce --evaluate` starts from the weights in DVC's cache instead"
        )
        raise ArtifactError(msg)


def describe_reproduction(options: argparse.Namespace, clone: Path) -> str:
    """Return the beginning of a sentence, with the command, commit and machine of a reproduction."""
    command = " ".join(["pipeline reproduce", *options.runs, *(["--evaluate"] if options.evaluate else [])])
    commit = call(["git", "rev-parse", "--short=12", "HEAD"], clone).strip()
    machine = describe_environment()
    return f"`{command}` of commit {commit}, {machine['processor']}, {machine['threads']} threads:"


def read_claims(folder: Path, run: str) -> dict[str, Any]:
    """Return the metrics, sets and protocol of a run in a checkout.

    Raises:
        ArtifactError: if the run's numbers are not committed.
    """
    where = folder / artifacts.REPORTS / "runs" / run
    claims = {stem: artifacts.read_json(where / f"{stem}.json") for stem in RESULTS}
    check_content(claims["protocol"], f"{run}: protocol.json")
    return claims


def repeat(project: Path, runs: list[str], settings: Params, *, evaluate: bool) -> None:
    """Run the stages of the runs in a clone, with this interpreter; what they print goes to standard error.

    evaluate: take what sampling and evaluating read from the cache of the present folder.

    Raises:
        ArtifactError: if a stage fails.
    """
    for run in runs:  # with git's numbers in place, DVC would take an evaluation of equal samples for up to date
        for stem in RESULTS:
            (project / artifacts.REPORTS / "runs" / run / f"{stem}.json").unlink()
    commands = [[*DVC, "repro", *(f"evaluate@{run}" for run in runs)]]
    if evaluate:
        inputs = dict.fromkeys(stage for run in runs for stage in list_inputs(run, settings))
        again = [f"{stage}@{run}" for run in runs for stage in ("sample", "evaluate")]
        commands = [
            [*DVC, "cache", "dir", "--local", call([*DVC, "cache", "dir"], Path.cwd()).strip()],
            [*DVC, "checkout", "--quiet", *inputs],
            [*DVC, "repro", "check"],  # finds the code that the stages depend on
            [*DVC, "repro", "--force", "--single-item", *again],
        ]
    for command in commands:
        run_in_clone(command, project)


def judge_claims(
    claim: Mapping[str, Any], found: Mapping[str, Any], first: str, spread: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, float, str, float, str]]:
    """Yield (metric, claimed, interval, found, verdict) of each claim of a run; a missing one is not a number.

    first: the stage that differs first. spread: the run's numbers over seeds; None where its model came out equal.
    """
    values = load_values(claim["protocol"]["protocol"]["metric"]["name"])
    for metric, value in claim["metrics"].items():
        if not is_measurement(values, metric):
            continue
        low, high = find_interval(values, metric, claim)
        lowest, highest = trainings.find_prediction(spread, metric)
        now = found["metrics"].get(metric, math.nan)
        differing = [field for field, *_ in find_differences(claim["protocol"], found["protocol"], metric)]
        others = [field for field in differing if not field.startswith((*NOTED, NETWORK))]
        if others:
            verdict = f"{NOT}, other protocol: {others[0]}; first different: {first}"
        elif metric not in found["metrics"]:
            verdict = f"{NOT}, missing"
        elif now == value:
            verdict = EXACT
        elif low <= now <= high:
            verdict = WITHIN
        elif spread and lowest <= now <= highest:
            verdict = f"{NEAR} {format_interval(lowest, highest)} of {len(spread['seeds'])} trainings"
        elif math.isnan(low):
            verdict = f"{OPEN}, {explain_absence(metric, claim)}; first different: {first}"
        else:
            verdict = f"{NOT}, first different: {first}"
        yield metric, value, format_interval(low, high), now, verdict


def note_versions(claim: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for other code, and for each library of which the clone has another version."""
    noted = {
        (field, before, now)
        for metric in claim["metrics"]
        for field, before, now in find_differences(claim["protocol"], found["protocol"], metric)
        if field.startswith(NOTED)
    }
    for field, before, now in sorted(noted):
        name = field.removeprefix("versions.")
        yield f"evaluated with {name} {now}, claimed with {name} {before}"


def explain_absence(metric: str, claim: Mapping[str, Any]) -> str:
    """Return why a claim has no interval."""
    if metric in claim["sets"]:
        return summarize([claim["sets"][metric]]).reason
    return "no interval: one value, without a standard error over enough test data"


def read_outputs(folder: Path) -> dict[str, dict[str, str]]:
    """Return the md5 of each output of each stage in a checkout's dvc.lock."""
    return list_outputs(dvc_lock.read_stages(folder / dvc_lock.PATH))


def list_outputs(stages: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the md5 of each output of each stage of a dvc.lock."""
    return {instance: dvc_lock.list_hashes(stages, instance, "outs") for instance in stages}


def list_inputs(run: str, settings: Params) -> list[str]:
    """Return the stages that make what sampling and evaluating a run read, in the order of the pipeline."""
    about = settings.runs[run]
    networks = [about.network] if about.network != params.NONE else []
    data = dict.fromkeys([about.data, *(settings.networks[name].data for name in networks)])
    stages = [f"{stage}@{name}" for stage in ("fetch", "prepare") for name in data]
    return [*stages, *(f"networks@{name}" for name in networks), f"train@{run}"]


def list_chain(run: str, settings: Params) -> Iterator[str]:
    """Yield a run, and the runs that it starts from."""
    while run in settings.runs:  # a start may be a folder or an address too
        yield run
        run = settings.runs[run].start


def list_makers(run: str, settings: Params) -> list[str]:
    """Return the stages that make a run's numbers but `sample` and `evaluate`, those of its starts first."""
    stages: list[str] = []
    for start in reversed([*list_chain(run, settings)][1:]):
        data = settings.runs[start].data
        stages += [f"fetch@{data}", f"prepare@{data}", f"train@{start}"]
    return [*dict.fromkeys([*stages, *list_inputs(run, settings)])]


def is_retrained(claimed: Mapping[str, Any], found: Mapping[str, Any], run: str) -> bool:
    """Return whether the model of a run came out different."""
    models = [lock.get(f"train@{run}", {}).get(f"data/runs/{run}/model") for lock in (claimed, found)]
    return models[0] != models[1]


def find_first(claimed: Mapping[str, Any], found: Mapping[str, Any], run: str, settings: Params) -> str:
    """Return the first stage of a run with an output that differs; records hold times and are left out."""
    for stage in [*list_makers(run, settings), f"sample@{run}", f"evaluate@{run}"]:
        outs = {path: md5 for path, md5 in claimed.get(stage, {}).items() if not path.endswith("/record")}
        if any(found.get(stage, {}).get(path) != md5 for path, md5 in outs.items()):
            return stage
    return "none"


def format_table(rows: list[tuple[str, str, float, str, float, str]], notes: list[str]) -> str:
    """Return the Markdown table, the notes, a paragraph each, and one line of totals."""
    cells = [
        [run, metric, f"{value:.6g}", interval, f"{now:.6g}", re.sub(f"^{NOT}", f"**{NOT}**", verdict)]
        for run, metric, value, interval, now, verdict in rows
    ]
    titles = ["run", "metric", "claimed", "interval", "reproduced", "verdict"]
    table = align_table(titles, cells, numbers=["claimed", "reproduced"])
    counts = [f"{sum(row[-1].startswith(kind) for row in rows)} {kind}" for kind in (EXACT, WITHIN, NOT)]
    near, undecided = (sum(row[-1].startswith(kind) for row in rows) for kind in (NEAR, OPEN))
    counts += [f"{near} {NEAR}"] if near else []
    counts += [f"{undecided} without a verdict"] if undecided else []
    return table + "".join(f"\n{line}\n" for line in [*notes, f"{len(rows)} claims: {', '.join(counts)}"])
