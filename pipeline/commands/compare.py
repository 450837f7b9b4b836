"""Compares evaluated runs: means, intervals, p-values, and "inconclusive" for a difference within the noise.

    pipeline compare gan gan_hinge                   # each with all of its seeds
    pipeline compare 'gan*' --metric fid_classifier  # all runs of that pattern, by experiment
    pipeline compare gan main:gan brave-fox:gan      # other commits, branches, tags or DVC experiments

Runs that differ only in the seed are seeds of one experiment and are averaged. They have the same model, config and
weights, and dvc.lock has the same code and prepared data for their training and sampling. The other seeds of a run
are included, except with --only, and so are the trainings of `pipeline spread`. A name that no run has stands for all
runs whose names begin with it and `_`. Revisions may differ in everything else. A run of two revisions, such as of two
machines, is two columns.

The table is Markdown and has the measurements that all runs have by the same protocol. Below it are the values whose
protocols differ, with the field that differs. `--metric` refuses such a value.
"""

import fnmatch
import json
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import RESULTS, align_table, make_parser
from pipeline.commands.grid import suggest
from pipeline.evidence import trainings
from pipeline.evidence.protocol import (
    ProtocolError,
    check_content,
    covers,
    find_refusals,
    flatten,
    format_refusals,
)
from pipeline.evidence.uncertainty import (
    LEAST,
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

    metrics: the value of each metric. numbers: by metric one value per sample set.
    values: what the metric declares of them.
    content: of the run's protocol.json.
    inputs: by stage the hashes of the code and the prepared data, empty where dvc.lock does not have the run.
    """

    name: str
    metrics: dict[str, float]
    numbers: dict[str, list[float]]
    values: Values
    content: dict[str, Any]
    inputs: dict[str, dict[str, str]]

    @property
    def revision(self) -> str:
        """The revision whose numbers these are; empty: the working folder."""
        return self.name.rpartition(":")[0]

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return int(self.content["run"]["seed"])

    @property
    def settings(self) -> dict[str, Any]:
        """Everything else of the run's settings."""
        return {key: value for key, value in self.content["run"].items() if key != "seed"}

    @property
    def experiment(self) -> str:
        """A text that is equal for the seeds of one experiment."""
        return json.dumps([self.settings, self.inputs], sort_keys=True)

    def list_measurements(self) -> list[str]:
        """List the metrics that are compared."""
        return [name for name in self.numbers if is_measurement(self.values, name)]


def main(arguments: list[str]) -> int:
    """Print the comparison."""
    parser = make_parser("compare", __doc__)
    kinds = "a run, the beginning of names, a pattern, or <revision>:<run>"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=kinds)
    parser.add_argument("--only", action="store_true", help="compare only these runs, without their other seeds")
    parser.add_argument("--metric", action="append", default=[], help="show only this metric; may be repeated")
    parser.add_argument("--allow", action="append", default=[], help="protocol field that may differ, such as versions")
    options = parser.parse_args(arguments)
    locks = {revision: read_lock(revision) for revision in {name.rpartition(":")[0] for name in options.runs}}
    names = {word: expand_name(word) for word in options.runs}
    once = dict.fromkeys(name for found in names.values() for name in found)
    evaluations = [read_evaluation(name, locks) for name in once]
    require_fields(options.allow, evaluations)
    others, notes = ([], []) if options.only else find_seeds(evaluations, locks)
    groups = group_seeds(evaluations, others)
    if not options.only:
        groups = {name: add_trainings(members) for name, members in groups.items()}
    print(format_table(name_groups(groups, names), options.metric, options.allow), end="")
    print("".join(f"\n{note}\n" for note in notes), end="")
    return 0


def expand_name(word: str) -> list[str]:
    """Return the runs that a word of the command line names: a run, or those that begin so or fit the pattern."""
    revision, colon, name = word.rpartition(":")
    known = list_runs(revision)
    if name in known:
        return [word]
    found = [run for run in known if fnmatch.fnmatchcase(run, name) or fnmatch.fnmatchcase(run, f"{name}_*")]
    planned = [] if revision else params.list_keys("runs")
    if not (found or revision or name in planned):
        if not known:
            params.require_project()
        msg = f"no run {name!r}, and none begins with {name}_{suggest(name, [*dict.fromkeys([*planned, *known])])}"
        raise ArtifactError(msg)
    return [f"{revision}{colon}{run}" for run in found] or [word]  # reading it says what is missing


def require_fields(allowed: Sequence[str], evaluations: Sequence[Evaluation]) -> None:
    """Refuse a field of --allow that no protocol has.

    Raises:
        ArtifactError: with the fields that there are.
    """
    leaves = {leaf for each in evaluations for leaf, _ in flatten(each.content["protocol"])}
    for field in allowed:
        if not any(covers([field], leaf) for leaf in leaves):
            known = sorted({leaf.partition(".")[0] for leaf in leaves})
            msg = f"--allow: no protocol has the field {field!r}; there are {', '.join(known)}"
            raise ArtifactError(msg)


def list_runs(revision: str) -> list[str]:
    """Return the runs that have numbers in the working folder, or in a revision."""
    if not revision:
        return sorted(path.parent.name for path in (artifacts.REPORTS / "runs").glob("*/metrics.json"))
    listed = _call_git_show(revision, f"{artifacts.REPORTS}/runs").stdout.splitlines()  # a folder's names end in /
    return sorted(line[:-1] for line in listed if line.endswith("/"))


def name_groups(
    groups: Mapping[str, list[Evaluation]], names: Mapping[str, Sequence[str]]
) -> dict[str, list[Evaluation]]:
    """Name a group after the word of the command line that stands for it and for no other run."""
    titles = {name: word for word, found in names.items() for name in found}
    named: dict[str, list[Evaluation]] = {}
    for first, members in groups.items():
        word = titles[first]
        named[word if {*names[word]} <= {member.name for member in members} else first] = members
    return named


def find_seeds(
    evaluations: Sequence[Evaluation], locks: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Evaluation], list[str]]:
    """Return the other seeds of the experiments, by seed, and a sentence on those of other code or data."""
    found: list[Evaluation] = []
    unlike: list[str] = []
    for revision in dict.fromkeys(evaluation.revision for evaluation in evaluations):
        mine = [each for each in evaluations if each.revision == revision]
        settings = [each.settings for each in mine]
        counted = {(each.experiment, each.seed) for each in mine}
        for run in list_runs(revision):
            name = f"{revision}:{run}" if revision else run
            if name in {each.name for each in mine} or read_settings(revision, run) not in settings:
                continue
            other = read_evaluation(name, locks)
            if other.experiment not in {each.experiment for each in mine}:
                unlike.append(name)
            elif (other.experiment, other.seed) not in counted:
                counted.add((other.experiment, other.seed))
                found.append(other)
    notes = [f"Not counted as seeds: {', '.join(unlike)}: other code or data in dvc.lock"] if unlike else []
    return sorted(found, key=lambda each: each.seed), notes


def add_trainings(members: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the seeds of one experiment with the trainings of `pipeline spread`; a seed that has a run counts once."""
    found = {member.seed: member for member in members}
    for member in members:
        for training in read_trainings(member):
            found.setdefault(training.seed, training)
    return list(found.values())


def read_trainings(evaluation: Evaluation) -> Iterator[Evaluation]:
    """Yield the trainings of a run with other seeds that `pipeline spread` has made, each as an evaluation."""
    revision, _, run = evaluation.name.rpartition(":")
    try:
        spread = read_file(revision, f"{artifacts.REPORTS}/runs/{run}/{trainings.NAME}")
    except ArtifactError:
        return
    if trainings.belongs(spread, {"metrics": evaluation.metrics, "protocol": evaluation.content}):
        for seed, numbers in trainings.by_seed(spread).items():
            content = evaluation.content | {"run": evaluation.content["run"] | {"seed": seed}}
            sets = {name: [value] for name, value in numbers.items()}
            yield replace(evaluation, metrics=numbers, numbers=sets, content=content)


def read_settings(revision: str, run: str) -> dict[str, Any] | None:
    """Return the settings of a run but its seed, or None if it has none that can be read."""
    try:
        content = check_content(read_file(revision, f"{artifacts.REPORTS}/runs/{run}/protocol.json"), run)
    except ArtifactError:
        return None
    return {key: value for key, value in content["run"].items() if key != "seed"}


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
    read = {stem: read_file(revision, f"reports/runs/{run}/{stem}.json") for stem in RESULTS}
    numbers = {metric: [value] for metric, value in read["metrics"].items()} | read["sets"]
    content = check_content(read["protocol"], f"{name}: protocol.json")
    inputs = {stage: _find_inputs(locks[revision], f"{stage}@{run}") for stage in ("train", "sample")}
    values = load_values(content["protocol"]["metric"]["name"])
    return Evaluation(name, read["metrics"], numbers, values, content, inputs)


def _find_inputs(stages: Mapping[str, Any], instance: str) -> dict[str, str]:
    """Return the hashes of an instance's code and data; the file of its code is named after the run."""
    deps = dvc_lock.list_hashes(stages, instance, "deps")
    return {
        CODE if path.startswith(CODE) else path: md5
        for path, md5 in deps.items()
        if path.startswith((CODE, DATA, OLD_CODE))
    }


def read_file(revision: str, path: str) -> Any:
    """Return the content of a JSON file of the project in a revision, or of the working folder if it is empty.

    Raises:
        ArtifactError: if it is missing.
    """
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


def group_seeds(evaluations: Sequence[Evaluation], others: Sequence[Evaluation] = ()) -> dict[str, list[Evaluation]]:
    """Group runs that differ in nothing but the seed; a group is named after its first run.

    The revision is no part of what may not differ: DVC keeps each seed of an experiment as a commit of its own. If a
    seed comes again with other numbers or another protocol, such as those of another machine, it begins a new group.
    The `others` are seeds that nobody named: each joins the groups of its experiment that have a named run of its
    revision, and not yet its seed.

    Raises:
        ArtifactError: if a seed comes again with the same evaluation.
    """
    groups: dict[tuple[str, int], dict[int, Evaluation]] = {}
    for evaluation in evaluations:
        experiment, seed = evaluation.experiment, evaluation.seed
        earlier = [members[seed] for (known, _), members in groups.items() if known == experiment and seed in members]
        for other in earlier:
            if (other.numbers, other.content) == (evaluation.numbers, evaluation.content):
                msg = f"the same training counts twice: {other.name} (seed {seed}), {evaluation.name} (seed {seed})"
                raise ArtifactError(msg)
        groups.setdefault((experiment, len(earlier)), {})[seed] = evaluation
    for (experiment, _), members in groups.items():
        revisions = {member.revision for member in members.values()}
        for other in others:
            if experiment == other.experiment and other.revision in revisions:
                members.setdefault(other.seed, other)
    return {next(iter(members.values())).name: list(members.values()) for members in groups.values()}


def choose_metrics(
    runs: Sequence[Evaluation], wanted: Sequence[str], allowed: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the metrics of the table, and the paragraphs on the measurements that are not in it.

    Args:
        runs: the evaluations.
        wanted: metrics; none: the measurements that all runs have by the same protocol.
        allowed: fields of a protocol that may differ.

    Raises:
        ArtifactError: if a run lacks a wanted metric, or the runs have no metric in common.
        ProtocolError: if a wanted metric is not comparable, or none is.
    """
    common = [metric for metric in runs[0].numbers if all(metric in run.numbers for run in runs)]
    if missing := [metric for metric in wanted if metric not in common]:
        lacking = [
            f"{name} is not in {', '.join(dict.fromkeys(run.name for run in runs if name not in run.numbers))}"
            for name in missing
        ]
        msg = f"no metric {', '.join(missing)}; there are {', '.join(common) or 'none'}; {'; '.join(lacking)}"
        raise ArtifactError(msg)
    metrics = list(wanted) or [name for name in runs[0].list_measurements() if name in common]
    if not metrics:
        have = dict.fromkeys(f"{run.name} has {', '.join(run.list_measurements()) or 'none'}" for run in runs)
        msg = f"no metric that all runs have: {'; '.join(have)}"
        raise ArtifactError(msg)
    refusals = find_refusals(metrics, {run.name: run.content for run in runs}, allowed)
    notes = format_refusals(refusals)
    comparable = [name for name in metrics if not any(name in refused for refused in refusals.values())]
    if refusals and (wanted or not comparable):
        raise ProtocolError("\n".join(notes))
    return comparable, [] if wanted else [*notes, *list_others(runs, common)]


def format_table(groups: dict[str, list[Evaluation]], wanted: Sequence[str], allowed: Sequence[str]) -> str:
    """Return the Markdown table of the metrics that can be compared, and below it the ones that cannot.

    Every group after the first is compared with the first. `choose_metrics` has the arguments and the errors.
    """
    names = list(groups)
    runs = [member for members in groups.values() for member in members]
    metrics, notes = choose_metrics(runs, wanted, allowed)
    titles = [f"{name} ({len(members)} seed{'s' * (len(members) > 1)})" for name, members in groups.items()]
    versus = [f"{name} against {names[0]}" for name in names[1:]]
    rows = []
    for metric in metrics:
        value = find_value(runs[0].values, metric)
        tables = [list_sets(members, metric) for members in groups.values()]
        flaws = [find_flaws(members, metric) for members in groups.values()]
        cells = [format_summary(summarize(table)) + flaw for table, flaw in zip(tables, flaws, strict=True)]
        cells += [format_verdict(value.direction, tables[0], table) for table in tables[1:]]
        unit = f" ({value.unit})" if value.unit else ""
        rows.append([f"{metric}{unit}", *cells])
    means = "Mean and 95 % t-interval over seeds; with one seed, over its sample sets."
    meaning = f"{means} Fewer than {LEAST} seeds decide nothing."
    table = align_table(["metric", *titles, *versus], rows)
    return table + "".join(f"\n{note}\n" for note in (*notes, meaning))


def list_sets(members: Sequence[Evaluation], metric: str) -> list[list[float]]:
    """Return the values of the sample sets by seed, or their means where a seed has only that."""
    table = [member.numbers[metric] for member in members]
    return table if len({len(row) for row in table}) == 1 else [[float(np.mean(row))] for row in table]


def list_others(runs: Sequence[Evaluation], common: Sequence[str]) -> list[str]:
    """Return a paragraph for each set of runs with metrics that other runs lack, and one for undeclared metrics."""
    others: dict[str, list[str]] = {}
    for metric in dict.fromkeys(metric for run in runs for metric in run.list_measurements()):
        if metric not in common:
            owners = ", ".join(dict.fromkeys(run.name for run in runs if metric in run.numbers))
            others.setdefault(owners, []).append(metric)
    notes = [f"Only in {owners}: {', '.join(metrics)}" for owners, metrics in others.items()]
    undeclared = dict.fromkeys(name for run in runs for name in run.numbers if match_name(run.values, name) is None)
    return [*notes, f"Not declared by the metric: {', '.join(undeclared)}"] if undeclared else notes


def find_flaws(members: Sequence[Evaluation], metric: str) -> str:
    """Return why the metric of some runs is not reliable, in brackets; empty if it is reliable."""
    found = [find_flaw(run.values, {name: sets[0] for name, sets in run.numbers.items()}, metric) for run in members]
    return "".join(f" ({flaw})" for flaw in dict.fromkeys(filter(None, found)))


def format_summary(summary: Summary) -> str:
    """Return mean, interval and the two standard deviations as text."""
    text = f"{format_number(summary.mean)} {format_interval(summary.low, summary.high, summary.reason)}".rstrip()
    parts = [("sampling", summary.sampling_sd), ("training", summary.training_sd)]
    known = [f"{name} sd {value:.2g}" for name, value in parts if not math.isnan(value)]
    return text + (f"; {', '.join(known)}" if known else "")


def format_verdict(direction: str, first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> str:
    """Return the verdict on the second table against the first; direction: which values are better, or none."""
    found = compare(first, second)
    text = f"{found.difference:+.4g}"
    if math.isnan(found.p):
        return f"{text}, inconclusive: {found.reason}"
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
