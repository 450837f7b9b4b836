"""Compares evaluated runs: means, intervals, p-values, and "inconclusive" where the difference is within the noise.

    pipeline compare gan vae
    pipeline compare gan main:gan brave-fox:gan      # other commits, branches, tags or DVC experiments

Runs that differ in nothing but the seed are seeds of one experiment and are averaged: they have the same model, config
and weights, and dvc.lock has the same code and prepared data for their training and sampling. Revisions may differ in
all else. Numbers of different evaluation protocols are refused. The table is Markdown and has the metrics that all runs
have.
"""

import argparse
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.evidence.protocol import require_equal
from pipeline.evidence.uncertainty import MOST_SEEDS, Summary, compare, summarize

INPUTS = ("pipeline/", "data/prepared/")  # of a run's deps in dvc.lock: not the weights, they differ by the seed
BESIDE = ("_floor", "_real", "_se", "_reliable")  # endings of what stands beside another metric
COUNTS = ("_targets", "_windows", "samples", "floor_sets", "scored_images", "active_units", "modes")
HIGHER_IS_BETTER = ("precision", "recall", "isc", "modes_covered", "high_quality")
LOWER_IS_BETTER = ("fid", "kid", "elbo", "iw", "mode_kl", "validation_", "test_")


def is_compared(name: str) -> bool:
    """Say whether a metric has a better and a worse, and is no spread or count beside another one."""
    return not name.endswith(BESIDE + COUNTS) and not name.startswith("class_share") and "_std_" not in name


@dataclass(frozen=True)
class Evaluation:
    """The committed numbers of one run: by metric one value a sample set.

    inputs: by stage the hashes of the code and the prepared data, empty where dvc.lock does not have the run.
    """

    name: str
    values: dict[str, list[float]]
    protocol: dict[str, Any]
    run: dict[str, Any]
    inputs: dict[str, dict[str, str]]


def main(arguments: list[str]) -> int:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        prog="pipeline compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name of a run, or <revision>:<name>")
    parser.add_argument("--metric", action="append", default=[], help="show only this metric; may be repeated")
    parser.add_argument("--allow", action="append", default=[], help="protocol field that may differ, such as versions")
    options = parser.parse_args(arguments)
    locks = {revision: read_lock(revision) for revision in {name.rpartition(":")[0] for name in options.runs}}
    evaluations = [read_evaluation(name, locks) for name in options.runs]
    require_equal({evaluation.name: evaluation.protocol for evaluation in evaluations}, options.allow)
    print(render(group(evaluations), options.metric), end="")
    return 0


def read_lock(revision: str) -> dict[str, Any]:
    """Return the stages of dvc.lock in the working folder or in a revision, none without such a file.

    Raises:
        ArtifactError: if the file is no YAML, such as one with conflicts of a merge.
    """
    path = Path("dvc.lock")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if revision:
        text = _show(revision, str(path)).stdout
    return parse_lock(text, f"{revision}{':' * bool(revision)}{path}")


def parse_lock(text: str, place: str) -> dict[str, Any]:
    """Return the stages of a dvc.lock's text.

    Raises:
        ArtifactError: if it is no YAML; the message names the place.
    """
    try:
        lock = YAML(typ="safe", pure=True).load(text) or {}
    except YAMLError as error:
        msg = f"{place}: not YAML: {error}"
        raise ArtifactError(msg) from error
    stages: dict[str, Any] = lock.get("stages", {})
    return stages


def read_evaluation(name: str, locks: Mapping[str, Mapping[str, Any]]) -> Evaluation:
    """Read a run's metrics, sets and protocol from the working folder, or from a revision of the repository.

    locks: by revision the stages of dvc.lock.

    Raises:
        ArtifactError: if the run has not been evaluated there.
    """
    revision, _, run = name.rpartition(":")
    read = {stem: _read(revision, f"reports/runs/{run}/{stem}.json") for stem in ("metrics", "sets", "protocol")}
    values = {metric: [value] for metric, value in read["metrics"].items()} | read["sets"]
    inputs = {
        stage: {dep["path"]: dep["md5"] for dep in found["deps"] if dep["path"].startswith(INPUTS)}
        for stage in ("train", "sample")
        if (found := locks[revision].get(f"{stage}@{run}"))
    }
    return Evaluation(name, values, read["protocol"]["protocol"], read["protocol"]["run"], inputs)


def _read(revision: str, path: str) -> Any:
    if not revision:
        return artifacts.read_json(Path(path))
    shown = _show(revision, path)
    if shown.returncode:
        msg = f"{revision}:{path}: not found; a revision is a commit, a branch, a tag or a DVC experiment"
        raise ArtifactError(f"{msg} ({shown.stderr.strip()})")
    return json.loads(shown.stdout)


def _show(revision: str, path: str) -> subprocess.CompletedProcess[str]:
    listing = ["git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps"]  # DVC's experiments
    refs = subprocess.run(listing, capture_output=True, text=True, check=False).stdout.splitlines()
    commits = [line.split()[0] for line in refs if line.endswith(f"/{revision}")]
    # ./ because a DVC project may be a folder of the repository.
    shown = ["git", "show", f"{commits[0] if commits else revision}:./{path}"]
    return subprocess.run(shown, capture_output=True, text=True, check=False)


def group(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Group runs that differ in nothing but the seed; a group is named after its first run.

    The revision is no part of what may not differ: DVC keeps each seed of an experiment as a commit of its own.

    Raises:
        ArtifactError: if a seed stands twice in a group.
    """
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        settings = {key: value for key, value in evaluation.run.items() if key != "seed"}
        experiment = json.dumps([settings, evaluation.inputs], sort_keys=True)
        groups.setdefault(experiment, []).append(evaluation)
    for members in groups.values():
        seeds = [member.run["seed"] for member in members]
        if len(set(seeds)) < len(seeds):
            names = ", ".join(f"{member.name} (seed {member.run['seed']})" for member in members)
            msg = f"the same training counts twice: {names}"
            raise ArtifactError(msg)
    return {members[0].name: members for members in groups.values()}


def render(groups: dict[str, list[Evaluation]], wanted: Sequence[str]) -> str:
    """Return the Markdown table of the metrics that all runs have, and below it which runs have others.

    Every group after the first is compared with the first.

    Raises:
        ArtifactError: if a run lacks a wanted metric, or the runs have no metric in common.
    """
    names = list(groups)
    runs = [member for members in groups.values() for member in members]
    common = [metric for metric in runs[0].values if all(metric in run.values for run in runs)]
    if missing := [metric for metric in wanted if metric not in common]:
        lacking = [
            f"{name} is not in {', '.join(run.name for run in runs if name not in run.values)}" for name in missing
        ]
        msg = f"no metric {', '.join(missing)}; there are {', '.join(common) or 'none'}; {'; '.join(lacking)}"
        raise ArtifactError(msg)
    metrics = wanted or [name for name in common if is_compared(name)]
    if not metrics:
        have = [f"{run.name} has {', '.join(filter(is_compared, run.values)) or 'none'}" for run in runs]
        msg = f"no metric that all runs have: {'; '.join(have)}"
        raise ArtifactError(msg)
    titles = [f"{name} ({len(members)} seed{'s' * (len(members) > 1)})" for name, members in groups.items()]
    versus = [f"{name} against {names[0]}" for name in names[1:]]
    lines = [f"| metric | {' | '.join(titles + versus)} |", "|---" * (1 + len(titles) + len(versus)) + "|"]
    for metric in metrics:
        tables = [[member.values[metric] for member in members] for members in groups.values()]
        cells = [show(summarize(table)) for table in tables]
        cells += [judge(metric, tables[0], table) for table in tables[1:]]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    if not wanted:
        lines += list_others(runs, common)
    lines += [
        "",
        "Mean and 95 % t-interval over seeds; with one seed, over its sample sets, and then nothing is decided.",
    ]
    return "\n".join(lines) + "\n"


def list_others(runs: Sequence[Evaluation], common: Sequence[str]) -> list[str]:
    """Return a paragraph for each set of runs that have metrics which other runs lack."""
    others: dict[str, list[str]] = {}
    for metric in dict.fromkeys(metric for run in runs for metric in run.values):
        if metric not in common and is_compared(metric):
            owners = ", ".join(run.name for run in runs if metric in run.values)
            others.setdefault(owners, []).append(metric)
    return [line for owners, metrics in others.items() for line in ("", f"Only in {owners}: {', '.join(metrics)}")]


def show(summary: Summary) -> str:
    """Return mean, interval and the two standard deviations as text."""
    text = f"{summary.mean:.4g}"
    if not math.isnan(summary.low):
        text += f" [{summary.low:.4g}, {summary.high:.4g}]"
    parts = [("sampling", summary.sampling_sd), ("training", summary.training_sd)]
    known = [f"{name} sd {value:.2g}" for name, value in parts if not math.isnan(value)]
    return text + (f"; {', '.join(known)}" if known else "")


def judge(metric: str, first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> str:
    """Return the verdict on the second table against the first."""
    found = compare(first, second)
    text = f"{found.difference:+.4g}"
    if math.isnan(found.p):
        return f"{text}, inconclusive: one training seed"
    text += f", p = {found.p:.2g}, "
    if found.decided and not found.difference:
        return f"{text}the same"
    if not found.decided:
        enough = f"about {found.seeds_needed}" if found.seeds_needed else f"not even {MOST_SEEDS:,}"
        return f"{text}inconclusive: {enough} seeds each would decide"
    if metric.startswith(HIGHER_IS_BETTER):
        return text + ("better" if found.difference > 0 else "worse")
    if metric.startswith(LOWER_IS_BETTER):
        return text + ("better" if found.difference < 0 else "worse")
    return text + ("higher" if found.difference > 0 else "lower")
