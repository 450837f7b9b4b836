"""Compares evaluated runs: means, intervals, p-values, and "inconclusive" for a difference within the noise.

    pipeline compare gan vae
    pipeline compare gan main:gan brave-fox:gan      # other commits, branches, tags or DVC experiments

Runs that differ only in the seed are seeds of one experiment and are averaged. They have the same model, config and
weights, and dvc.lock has the same code and prepared data for their training and sampling. Revisions may differ in
everything else. Numbers of different evaluation protocols are refused. The table is Markdown and has the measurements
that all runs have.
"""

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.evidence.protocol import require_equal
from pipeline.evidence.uncertainty import (
    MOST_SEEDS,
    Summary,
    compare,
    format_interval,
    format_number,
    summarize,
)
from pipeline.evidence.values import Values, find_flaw, find_value, is_measurement, load_values, match_name
from pipeline.history import dvc_lock

# Of a run's inputs in dvc.lock: its code and its data. Not the weights, which differ by the seed.
CODE, DATA, OLD_CODE = "data/code/", "data/prepared/", "pipeline/"


@dataclass(frozen=True)
class Evaluation:
    """The committed numbers of one run.

    numbers: by metric one value per sample set.
    values: what the metric declares of them.
    inputs: by stage the hashes of the code and the prepared data, empty where dvc.lock does not have the run.
    """

    name: str
    numbers: dict[str, list[float]]
    values: Values
    protocol: dict[str, Any]
    run: dict[str, Any]
    inputs: dict[str, dict[str, str]]

    def list_measurements(self) -> list[str]:
        """List the metrics that are compared."""
        return [name for name in self.numbers if is_measurement(self.values, name)]


def main(arguments: list[str]) -> int:
    """Print the comparison."""
    parser = make_parser("compare", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name of a run, or <revision>:<name>")
    parser.add_argument("--metric", action="append", default=[], help="show only this metric; may be repeated")
    parser.add_argument("--allow", action="append", default=[], help="protocol field that may differ, such as versions")
    options = parser.parse_args(arguments)
    locks = {revision: read_lock(revision) for revision in {name.rpartition(":")[0] for name in options.runs}}
    evaluations = [read_evaluation(name, locks) for name in options.runs]
    require_equal({evaluation.name: evaluation.protocol for evaluation in evaluations}, options.allow)
    print(format_table(group_seeds(evaluations), options.metric), end="")
    return 0


def read_lock(revision: str) -> dict[str, Any]:
    """Return the stages of dvc.lock in the working folder or in a revision; none without such a file.

    Raises:
        ArtifactError: if the file is not YAML, for example because of a merge's conflicts.
    """
    if not revision:
        return dvc_lock.read_stages()
    return dvc_lock.parse_stages(_call_git_show(revision, str(dvc_lock.PATH)).stdout, f"{revision}:{dvc_lock.PATH}")


def read_evaluation(name: str, locks: Mapping[str, Mapping[str, Any]]) -> Evaluation:
    """Read a run's metrics, sets and protocol from the working folder, or from a revision of the repository.

    locks: by revision the stages of dvc.lock.

    Raises:
        ArtifactError: if the run has not been evaluated there.
    """
    revision, _, run = name.rpartition(":")
    read = {stem: _read(revision, f"reports/runs/{run}/{stem}.json") for stem in ("metrics", "sets", "protocol")}
    numbers = {metric: [value] for metric, value in read["metrics"].items()} | read["sets"]
    protocol = read["protocol"]["protocol"]
    inputs = {stage: _find_inputs(locks[revision], f"{stage}@{run}") for stage in ("train", "sample")}
    values = load_values(protocol["metric"]["name"])
    return Evaluation(name, numbers, values, protocol, read["protocol"]["run"], inputs)


def _find_inputs(stages: Mapping[str, Any], instance: str) -> dict[str, str]:
    """Return the hashes of an instance's code and data; the file of its code is named after the run."""
    deps = dvc_lock.list_hashes(stages, instance, "deps")
    return {
        CODE if path.startswith(CODE) else path: md5
        for path, md5 in deps.items()
        if path.startswith((CODE, DATA, OLD_CODE))
    }


def _read(revision: str, path: str) -> Any:
    if not revision:
        return artifacts.read_json(Path(path))
    shown = _call_git_show(revision, path)
    if shown.returncode:
        msg = f"{revision}:{path}: not found; a revision is a commit, a branch, a tag or a DVC experiment"
        raise ArtifactError(f"{msg} ({shown.stderr.strip()})")
    return json.loads(shown.stdout)


def _call_git_show(revision: str, path: str) -> subprocess.CompletedProcess[str]:
    listing = ["git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps"]  # DVC's experiments
    refs = subprocess.run(listing, capture_output=True, text=True, check=False).stdout.splitlines()
    commits = [line.split()[0] for line in refs if line.endswith(f"/{revision}")]
    # ./ because a DVC project may be a folder of the repository.
    shown = ["git", "show", f"{commits[0] if commits else revision}:./{path}"]
    return subprocess.run(shown, capture_output=True, text=True, check=False)


def group_seeds(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Group runs that differ in nothing but the seed; a group is named after its first run.

    The revision is no part of what may not differ: DVC keeps each seed of an experiment as a commit of its own.

    Raises:
        ArtifactError: if a seed is twice in a group.
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


def format_table(groups: dict[str, list[Evaluation]], wanted: Sequence[str]) -> str:
    """Return the Markdown table of the metrics that all runs have, and below it which runs have other metrics.

    Every group after the first is compared with the first.

    Raises:
        ArtifactError: if a run lacks a wanted metric, or the runs have no metric in common.
    """
    names = list(groups)
    runs = [member for members in groups.values() for member in members]
    common = [metric for metric in runs[0].numbers if all(metric in run.numbers for run in runs)]
    if missing := [metric for metric in wanted if metric not in common]:
        lacking = [
            f"{name} is not in {', '.join(run.name for run in runs if name not in run.numbers)}" for name in missing
        ]
        msg = f"no metric {', '.join(missing)}; there are {', '.join(common) or 'none'}; {'; '.join(lacking)}"
        raise ArtifactError(msg)
    metrics = wanted or [name for name in runs[0].list_measurements() if name in common]
    if not metrics:
        have = [f"{run.name} has {', '.join(run.list_measurements()) or 'none'}" for run in runs]
        msg = f"no metric that all runs have: {'; '.join(have)}"
        raise ArtifactError(msg)
    titles = [f"{name} ({len(members)} seed{'s' * (len(members) > 1)})" for name, members in groups.items()]
    versus = [f"{name} against {names[0]}" for name in names[1:]]
    lines = [f"| metric | {' | '.join(titles + versus)} |", "|---" * (1 + len(titles) + len(versus)) + "|"]
    for metric in metrics:
        value = find_value(runs[0].values, metric)
        tables = [[member.numbers[metric] for member in members] for members in groups.values()]
        flaws = [find_flaws(members, metric) for members in groups.values()]
        cells = [format_summary(summarize(table)) + flaw for table, flaw in zip(tables, flaws, strict=True)]
        cells += [format_verdict(value.direction, tables[0], table) for table in tables[1:]]
        unit = f" ({value.unit})" if value.unit else ""
        lines.append(f"| {metric}{unit} | {' | '.join(cells)} |")
    if not wanted:
        lines += list_others(runs, common)
    lines += [
        "",
        "Mean and 95 % t-interval over seeds; with one seed, over its sample sets, and then nothing is decided.",
    ]
    return "\n".join(lines) + "\n"


def list_others(runs: Sequence[Evaluation], common: Sequence[str]) -> list[str]:
    """Return a paragraph for each set of runs with metrics that other runs lack, and one for undeclared metrics."""
    others: dict[str, list[str]] = {}
    for metric in dict.fromkeys(metric for run in runs for metric in run.list_measurements()):
        if metric not in common:
            owners = ", ".join(run.name for run in runs if metric in run.numbers)
            others.setdefault(owners, []).append(metric)
    lines = [line for owners, metrics in others.items() for line in ("", f"Only in {owners}: {', '.join(metrics)}")]
    undeclared = dict.fromkeys(name for run in runs for name in run.numbers if match_name(run.values, name) is None)
    return [*lines, "", f"Not declared by the metric: {', '.join(undeclared)}"] if undeclared else lines


def find_flaws(members: Sequence[Evaluation], metric: str) -> str:
    """Return why the metric of some runs is not reliable, in brackets; empty if it is reliable."""
    found = [find_flaw(run.values, {name: sets[0] for name, sets in run.numbers.items()}, metric) for run in members]
    return "".join(f" ({flaw})" for flaw in dict.fromkeys(filter(None, found)))


def format_summary(summary: Summary) -> str:
    """Return mean, interval and the two standard deviations as text."""
    text = f"{format_number(summary.mean)} {format_interval(summary.low, summary.high)}".rstrip()
    parts = [("sampling", summary.sampling_sd), ("training", summary.training_sd)]
    known = [f"{name} sd {value:.2g}" for name, value in parts if not math.isnan(value)]
    return text + (f"; {', '.join(known)}" if known else "")


def format_verdict(direction: str, first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> str:
    """Return the verdict on the second table against the first; direction: which values are better, or none."""
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
    side = "higher" if found.difference > 0 else "lower"
    if direction == "none":
        return text + side
    return text + ("better" if side == direction else "worse")
