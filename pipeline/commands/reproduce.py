"""Reproduces the committed numbers in a fresh clone, and says of each whether they came out again.

    pipeline reproduce                    # every run of params.yaml, from the raw data on
    pipeline reproduce vae --evaluate     # with the committed weights from DVC's cache: samples and metrics alone
    pipeline reproduce --save             # and write reports/reproduction.md, which `pipeline readme` shows

A claim is a metric of reports/runs/<run>/metrics.json as git has it, with its protocol and its interval: over sample
sets, or 1.96 standard errors. Floors, spreads and counts beside the metrics have no interval and are no claims. Each
claim ends as "bit for bit", "within the interval" or "not", with the first stage whose output differs. A run whose
protocol comes out different ends as "not" as a whole; other versions of the libraries are noted below the table.
Status 0 if no claim ends as "not". The table is Markdown on standard output. In a subfolder that is a DVC project of
its own, the command is about that project.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands.compare import is_compared, parse_lock
from pipeline.evidence.protocol import find_differences
from pipeline.evidence.uncertainty import summarize
from pipeline.history.record import describe_environment
from pipeline.params import Params

REPORT = artifacts.REPORTS / "reproduction.md"
EXACT, WITHIN, NOT = "bit for bit", "within the interval", "**not**"
DVC = [sys.executable, "-m", "dvc"]


def main(arguments: list[str]) -> int:
    """Run the stages in a clone and print the table."""
    parser = argparse.ArgumentParser(
        prog="pipeline reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs of params.yaml; default: all")
    parser.add_argument("--evaluate", action="store_true", help="take the committed weights, do not train")
    parser.add_argument("--save", action="store_true", help=f"write {REPORT} with the table and what made it")
    options = parser.parse_args(arguments)
    settings = params.load()
    runs = options.runs or list(settings.runs)
    if unknown := [run for run in runs if run not in settings.runs]:
        msg = f"no run {', '.join(unknown)}; params.yaml has {', '.join(settings.runs)}"
        raise ArtifactError(msg)
    root = Path(_call(["git", "rev-parse", "--show-toplevel"], Path.cwd()).strip())
    if _call(["git", "status", "--porcelain", "--untracked-files=no"], root):
        print("warning: uncommitted changes are not part of what is reproduced", file=sys.stderr)
    rows, notes = [], []
    with tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
        clone = Path(folder) / "clone"
        _call(["git", "clone", "--quiet", str(root), str(clone)], root)
        made = describe(options, clone)
        project = clone / _call(["git", "rev-parse", "--show-prefix"], Path.cwd()).strip()
        claims = {run: read_claims(project, run) for run in runs}
        committed = read_lock(project)
        repeat(project, runs, settings, evaluate=options.evaluate)
        lock = read_lock(project)
        for run in runs:
            found = read_claims(project, run)
            first = find_first(committed, lock, run, settings)
            rows += [(run, *row) for row in judge(claims[run], found, first)]
            notes += [f"{run}: {note}" for note in note_versions(claims[run], found)]
    table = render(rows, notes)
    print(table, end="")
    if options.save:
        REPORT.write_text(f"{made}\n\n{table}", encoding="utf-8")
    return int(any(row[-1].startswith(NOT) for row in rows))


def describe(options: argparse.Namespace, clone: Path) -> str:
    """Return the beginning of a sentence, with the command, commit and machine of a reproduction."""
    command = " ".join(["pipeline reproduce", *options.runs, *(["--evaluate"] if options.evaluate else [])])
    commit = _call(["git", "rev-parse", "--short=12", "HEAD"], clone).strip()
    machine = describe_environment()
    return f"`{command}` of commit {commit}, {machine['processor']}, {machine['threads']} threads:"


def read_claims(folder: Path, run: str) -> dict[str, Any]:
    """Return the metrics, sets and protocol of a run in a checkout.

    Raises:
        ArtifactError: if the run's numbers are not committed.
    """
    where = folder / artifacts.REPORTS / "runs" / run
    return {stem: artifacts.read_json(where / f"{stem}.json") for stem in ("metrics", "sets", "protocol")}


def repeat(project: Path, runs: list[str], settings: Params, *, evaluate: bool) -> None:
    """Run the stages of the runs in a clone, with this interpreter; what they print goes to standard error.

    evaluate: take what sampling and evaluating read from the cache of the present folder.

    Raises:
        ArtifactError: if a stage fails.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    commands = [[*DVC, "repro", *(f"evaluate@{run}" for run in runs)]]
    if evaluate:
        inputs = dict.fromkeys(stage for run in runs for stage in list_inputs(run, settings))
        again = [f"{stage}@{run}" for run in runs for stage in ("sample", "evaluate")]
        commands = [
            [*DVC, "cache", "dir", "--local", _call([*DVC, "cache", "dir"], Path.cwd()).strip()],
            [*DVC, "checkout", "--quiet", *inputs],
            [*DVC, "repro", "--force", "--single-item", *again],
        ]
        (project / artifacts.FEATURES).mkdir(parents=True, exist_ok=True)  # every evaluation depends on the folder
    for command in commands:
        status = subprocess.run(command, cwd=project, env=environment, stdout=sys.stderr, check=False).returncode
        if status:
            msg = f"{' '.join(command[1:])} failed with status {status} in a clone"
            raise ArtifactError(msg)


def judge(
    claim: Mapping[str, Any], found: Mapping[str, Any], first: str
) -> Iterator[tuple[str, float, str, float, str]]:
    """Yield (metric, claimed, interval, found, verdict) of each claim of a run; a missing one is not a number."""
    others = [field for field, *_ in list_differences(claim, found) if not field.startswith("versions.")]
    for metric, value in claim["metrics"].items():
        if not is_compared(metric):
            continue
        low, high = find_interval(metric, claim)
        text = "" if math.isnan(low) else f"[{low:.4g}, {high:.4g}]"
        now = found["metrics"].get(metric, math.nan)
        if others:
            verdict = f"{NOT}, other protocol: {others[0]}; first different: {first}"
        elif metric not in found["metrics"]:
            verdict = f"{NOT}, missing"
        else:
            verdict = EXACT if now == value else WITHIN if low <= now <= high else f"{NOT}, first different: {first}"
        yield metric, value, text, now, verdict


def note_versions(claim: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each library of which the clone has another version."""
    for field, before, now in list_differences(claim, found):
        if field.startswith("versions."):
            name = field.removeprefix("versions.")
            yield f"evaluated with {name} {now}, claimed with {name} {before}"


def list_differences(claim: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (field, claimed, found) of every difference of the protocols, without the feature networks.

    They are reproduced, too, and stand in find_first.
    """
    before, now = (
        {name: value for name, value in side["protocol"]["protocol"].items() if name != "features"}
        for side in (claim, found)
    )
    return find_differences(before, now)


def find_interval(metric: str, claim: Mapping[str, Any]) -> tuple[float, float]:
    """Return the claim's interval: Student's over the sample sets, 1.96 standard errors, or not a number."""
    metrics = claim["metrics"]
    if metric in claim["sets"]:
        summary = summarize([claim["sets"][metric]])
        return summary.low, summary.high
    if f"{metric}_se" in metrics:
        half = 1.96 * metrics[f"{metric}_se"]
        return metrics[metric] - half, metrics[metric] + half
    return derive_interval(metric, metrics)


def derive_interval(metric: str, metrics: Mapping[str, float]) -> tuple[float, float]:
    """Return the interval of a function of a text's nats: the function at both ends of the nats' own interval.

    With s = 1 +- 1.96 <split>_nats_se / <split>_nats, bits = c nats become bits s, and perplexity = exp(c nats) becomes
    perplexity^s. Excess = 100 (c nats / rate - 1) becomes (100 + excess) s - 100: the split's own nats are taken for
    the entropy rate, which is not among the metrics. All else is not a number.
    """
    split, _, name = metric.partition("_")
    nats = metrics.get(f"{split}_nats") or math.nan  # 0 nats have no ratio
    share = 1.96 * metrics.get(f"{split}_nats_se", math.nan) / nats
    value, scales = metrics[metric], (1 - share, 1 + share)
    if name in ("bits_per_character", "bits_per_byte"):
        low, high = (value * scale for scale in scales)
    elif name in ("perplexity", "perplexity_per_word"):
        low, high = (value**scale for scale in scales)
    elif name == "excess_percent":
        low, high = ((100 + value) * scale - 100 for scale in scales)
    else:
        low, high = math.nan, math.nan
    return low, high


def read_lock(folder: Path) -> dict[str, dict[str, str]]:
    """Return the md5 of each output of each stage in a checkout's dvc.lock."""
    stages = parse_lock((folder / "dvc.lock").read_text(encoding="utf-8"), "dvc.lock")
    return {name: {out["path"]: out["md5"] for out in stage.get("outs", [])} for name, stage in stages.items()}


def list_inputs(run: str, settings: Params) -> list[str]:
    """Return the stages that make what sampling and evaluating a run read, in the order of the pipeline."""
    about = settings.runs[run]
    networks = [settings.features[name].model_dump() for name in about.features]
    data = dict.fromkeys([about.data, *(str(network["data"]) for network in networks)])
    stages = [f"{stage}@{name}" for stage in ("fetch", "prepare") for name in data]
    return [*stages, *(f"features@{name}" for name in about.features), f"train@{run}"]


def find_first(claimed: Mapping[str, Any], found: Mapping[str, Any], run: str, settings: Params) -> str:
    """Return the first stage of a run with an output that differs; records hold times and are left out."""
    for stage in [*list_inputs(run, settings), f"sample@{run}", f"evaluate@{run}"]:
        outs = {path: md5 for path, md5 in claimed.get(stage, {}).items() if not path.endswith("/record")}
        if any(found.get(stage, {}).get(path) != md5 for path, md5 in outs.items()):
            return stage
    return "none"


def render(rows: list[tuple[str, str, float, str, float, str]], notes: list[str]) -> str:
    """Return the Markdown table, the notes, a paragraph each, and one line of totals."""
    lines = ["| run | metric | claimed | interval | reproduced | verdict |", "|---|---|---:|---|---:|---|"]
    lines += [
        f"| {run} | {metric} | {value:.6g} | {interval} | {now:.6g} | {verdict} |"
        for run, metric, value, interval, now, verdict in rows
    ]
    counts = [f"{sum(row[-1].startswith(kind) for row in rows)} {kind.strip('*')}" for kind in (EXACT, WITHIN, NOT)]
    lines += [line for note in notes for line in ("", note)]
    return "\n".join([*lines, "", f"{len(rows)} claims: {', '.join(counts)}"]) + "\n"


def _call(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{' '.join(command)} failed: {done.stderr.strip()}"
        raise ArtifactError(msg)
    return done.stdout
