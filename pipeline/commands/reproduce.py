"""Reproduces the committed numbers in a fresh clone, and says of each whether they came out again.

    pipeline reproduce                    # every run of params.yaml, from the raw data on
    pipeline reproduce vae --evaluate     # with the committed weights from DVC's cache: samples and metrics alone

A claim is a metric of reports/runs/<run>/metrics.json as git has it, with its protocol and its interval: over sample
sets, or 1.96 standard errors. Each claim ends as "bit for bit", "within the interval" or "not", with the first stage
whose output differs. Status 0 if no claim ends as "not". The table is Markdown on standard output.
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

from ruamel.yaml import YAML

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.params import Params
from pipeline.protocol import require_equal
from pipeline.uncertainty import summarize

EXACT, WITHIN, NOT = "bit for bit", "within the interval", "**not**"


def main(arguments: list[str]) -> int:
    """Run the stages in a clone and print the table."""
    parser = argparse.ArgumentParser(
        prog="pipeline reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs of params.yaml; default: all")
    parser.add_argument("--evaluate", action="store_true", help="take the committed weights, do not train")
    options = parser.parse_args(arguments)
    settings = params.load()
    runs = options.runs or list(settings.runs)
    if unknown := [run for run in runs if run not in settings.runs]:
        msg = f"no run {', '.join(unknown)}; params.yaml has {', '.join(settings.runs)}"
        raise ArtifactError(msg)
    root = Path(_call(["git", "rev-parse", "--show-toplevel"], Path.cwd()).strip())
    if _call(["git", "status", "--porcelain", "--untracked-files=no"], root):
        print("warning: uncommitted changes are not part of what is reproduced", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
        clone = Path(folder) / "clone"
        _call(["git", "clone", "--quiet", str(root), str(clone)], root)
        claims = {run: read_claims(clone, run) for run in runs}
        committed = read_lock(clone)
        repeat(root, clone, runs, evaluate=options.evaluate)
        rows = [
            (run, *row)
            for run in runs
            for row in judge(
                claims[run], read_claims(clone, run), find_first(committed, read_lock(clone), run, settings)
            )
        ]
    print(render(rows), end="")
    return int(any(row[-1].startswith(NOT) for row in rows))


def read_claims(folder: Path, run: str) -> dict[str, Any]:
    """Return the metrics, sets and protocol of a run in a checkout.

    Raises:
        ArtifactError: if the run's numbers are not committed.
    """
    where = folder / artifacts.REPORTS / "runs" / run
    return {stem: artifacts.read_json(where / f"{stem}.json") for stem in ("metrics", "sets", "protocol")}


def repeat(root: Path, clone: Path, runs: list[str], *, evaluate: bool) -> None:
    """Run the stages of the runs in the clone, with this interpreter; what they print goes to standard error.

    Raises:
        ArtifactError: if a stage fails.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    dvc = [sys.executable, "-m", "dvc"]
    commands = [[*dvc, "repro", *(f"evaluate@{run}" for run in runs)]]
    if evaluate:
        commands = [
            [*dvc, "cache", "dir", "--local", str(root / ".dvc" / "cache")],
            [*dvc, "checkout", "--quiet"],
            [
                *dvc,
                "repro",
                "--force",
                "--single-item",
                *(f"{stage}@{run}" for run in runs for stage in ("sample", "evaluate")),
            ],
        ]
    for command in commands:
        status = subprocess.run(command, cwd=clone, env=environment, stdout=sys.stderr, check=False).returncode
        if status:
            msg = f"{' '.join(command[1:])} failed with status {status} in a clone of {root}"
            raise ArtifactError(msg)


def judge(
    claim: Mapping[str, Any], found: Mapping[str, Any], first: str
) -> Iterator[tuple[str, float, str, float, str]]:
    """Yield (metric, claimed, interval, found, verdict) of each metric of a run.

    Raises:
        ProtocolError: if the clone evaluated by another protocol.
    """
    reference = {name: value for name, value in claim["protocol"]["protocol"].items() if name != "features"}
    again = {name: value for name, value in found["protocol"]["protocol"].items() if name != "features"}
    require_equal({"the claim": reference, "its reproduction": again})  # feature networks are reproduced, too
    for metric, value in claim["metrics"].items():
        low, high = find_interval(metric, claim)
        text = "" if math.isnan(low) else f"[{low:.4g}, {high:.4g}]"
        now = found["metrics"][metric]
        verdict = EXACT if now == value else WITHIN if low <= now <= high else f"{NOT}, first different: {first}"
        yield metric, value, text, now, verdict


def find_interval(metric: str, claim: Mapping[str, Any]) -> tuple[float, float]:
    """Return the claim's interval: Student's over the sample sets, 1.96 standard errors, or not a number."""
    metrics = claim["metrics"]
    if metric in claim["sets"]:
        summary = summarize([claim["sets"][metric]])
        return summary.low, summary.high
    half = 1.96 * metrics.get(f"{metric}_se", math.nan)
    return metrics[metric] - half, metrics[metric] + half


def read_lock(folder: Path) -> dict[str, dict[str, str]]:
    """Return the md5 of each output of each stage in a checkout's dvc.lock."""
    stages = YAML(typ="safe", pure=True).load(folder / "dvc.lock")["stages"]
    return {name: {out["path"]: out["md5"] for out in stage.get("outs", [])} for name, stage in stages.items()}


def find_first(claimed: Mapping[str, Any], found: Mapping[str, Any], run: str, settings: Params) -> str:
    """Return the first stage of a run with an output that differs; records hold times and are left out."""
    about = settings.runs[run]
    networks = [settings.features[name].model_dump() for name in about.features]
    data = dict.fromkeys([about.data, *(str(network["data"]) for network in networks)])
    stages = [f"{stage}@{name}" for stage in ("fetch", "prepare") for name in data]
    stages += [f"features@{name}" for name in about.features]
    stages += [f"{stage}@{run}" for stage in ("train", "sample", "evaluate")]
    for stage in stages:
        outs = {path: md5 for path, md5 in claimed.get(stage, {}).items() if not path.endswith("/record")}
        if any(found.get(stage, {}).get(path) != md5 for path, md5 in outs.items()):
            return stage
    return "none"


def render(rows: list[tuple[str, str, float, str, float, str]]) -> str:
    """Return the Markdown table and one line of totals."""
    lines = ["| run | metric | claimed | interval | reproduced | verdict |", "|---|---|---:|---|---:|---|"]
    lines += [
        f"| {run} | {metric} | {value:.6g} | {interval} | {now:.6g} | {verdict} |"
        for run, metric, value, interval, now, verdict in rows
    ]
    counts = [f"{sum(row[-1].startswith(kind) for row in rows)} {kind.strip('*')}" for kind in (EXACT, WITHIN, NOT)]
    return "\n".join([*lines, "", f"{len(rows)} claims: {', '.join(counts)}"]) + "\n"


def _call(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{' '.join(command)} failed: {done.stderr.strip()}"
        raise ArtifactError(msg)
    return done.stdout
