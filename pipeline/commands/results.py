"""Gathers the benchmarks' claims from the runs that they name, into results.json and a table, results.md.

    cd benchmarks && pipeline results

results.yaml names each claim: its runs (one per seed), metric, direction, and the values to reach. The direction must
be the one that the metric declares. The runs of one claim have one protocol of that metric and differ only in the seed.
A claim is reached if its whole interval is at least as good as the value to reach, missed if all of it is worse, and
otherwise inconclusive. Fewer than three seeds, and equal ones, have no interval: each seed must then be as good. An
optional claim without any of its runs, or of those in `against`, is "not measured here". A fresh clone has the metrics,
but not the records of the trainings: the time and memory in results.json stay if the value is still the same, or if
seeds were added to it. The ratios of speed.json, if there is one, also become claims of results.json.

A claim with `against` is a difference or a ratio: its values are those of `runs` less, or over, those of `against`,
seed by seed. With `by: multiplier`, `against` has runs on several sizes of the same training text, the smallest size
first and every seed of one size before the next. The value is the size by which these reach the value of `runs`, over
the size that `runs` had: interpolated in its logarithm between measured sizes, and otherwise "more than" the largest or
"at most" the smallest one.

In a folder with a families.yaml, results.md also sets families of models side by side: pipeline/pages/families.py.

A claim with `networks` is of feature networks, such as the accuracy of their linear probes. One with `spread` is of the
trainings that `pipeline spread` has made of a run, perhaps of another project. Neither has costs.
"""

import itertools
import math
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser, reproduce
from pipeline.evidence import trainings
from pipeline.evidence.protocol import (
    ProtocolError,
    check_runs,
    find_refusals,
    format_refusals,
    list_differences,
    read_protocol,
)
from pipeline.evidence.uncertainty import format_interval, format_number, summarize, summarize_seeds
from pipeline.evidence.values import Values, find_count, find_flaw, find_value, load_values
from pipeline.history.record import describe_environment
from pipeline.pages import families
from pipeline.params import Section, check_section, read_mapping

PATH, SPEED = Path("results.yaml"), Path("speed.json")
ACCURACY = "_accuracy"
COSTS = ("training_seconds", "cpu_seconds", "peak_memory_mib", "processor", "threads", "commits")
LATER = ("count", "seeds", "seconds", "peak_memory_mib", "commit")  # what older rows of speed.json lack


class Claim(Section):
    """One line of the table."""

    title: str = Field(description="what was measured, by which protocol")
    runs: list[str] = Field(default=[], description="runs of params.yaml, one per seed")
    networks: list[str] = Field(default=[], description="feature networks instead of runs, one per seed")
    spread: str = Field(default="", description="instead of runs, a run's folder with its spread.json")
    metric: str = Field(description="a metric of those runs, or a number of reports/networks/<network>.json")
    lower_is_better: bool
    must: float = Field(description="what had to be reached")
    aim: float = Field(description="what was aimed at")
    source: str = Field(description="where the value to reach comes from")
    against: list[str] = Field(
        default=[], description="runs that these are compared with, one for each, or with multiplier several; none: not"
    )
    by: Literal["difference", "ratio", "multiplier"] = Field(
        default="difference", description="how `against` is compared; multiplier: of the training data that it needs"
    )
    optional: bool = Field(default=False, description="may be missing: what it needs is not everywhere at hand")

    @model_validator(mode="after")
    def _check(self) -> "Claim":
        if self.spread and Path(self.spread).parts[-3:-1] != ("reports", "runs"):
            msg = f"spread: expected a folder such as ../reports/runs/gan, got {self.spread!r}"
            raise ValueError(msg)
        if sum(map(bool, (self.runs, self.networks, self.spread))) != 1:
            msg = "expected either runs, networks or spread"
            raise ValueError(msg)
        if self.by == "multiplier" and (not self.runs or self.lower_is_better):
            msg = "by: multiplier: expected runs, and lower_is_better: false, since a larger one is better"
            raise ValueError(msg)
        if self.by == "multiplier" and (len(self.against) < 2 * len(self.runs) or len(self.against) % len(self.runs)):
            msg = f"against: expected {len(self.runs)} runs for each of two or more sizes, got {len(self.against)}"
            raise ValueError(msg)
        if self.by != "multiplier" and self.against and len(self.against) != len(self.runs):
            msg = f"against: expected {len(self.runs)} runs, got {len(self.against)}"
            raise ValueError(msg)
        return self

    @property
    def groups(self) -> list[list[str]]:
        """The runs of `against`, as many at a time as there are `runs`."""
        return [self.against[start : start + len(self.runs)] for start in range(0, len(self.against), len(self.runs))]


def main(arguments: list[str]) -> int:
    """Write results.json and results.md."""
    make_parser("results", __doc__).parse_args(arguments)
    claims = read_claims()
    former = read_former(Path("results.json"))
    results = {name: measure_claim(name, claim, former.get(name, {})) for name, claim in claims.items()}
    speed = read_speed(artifacts.read_json(SPEED)) if SPEED.exists() else {}
    artifacts.write_json(Path("results.json"), results | speed)
    table = families.write(describe_environment()) if families.PATH.exists() else ""
    Path("results.md").write_text(format_table(claims, results) + table, encoding="utf-8")
    measured = sum(found["value"] is not None for found in results.values())
    print(f"{measured} of {len(results)} benchmarks are measured: results.json, results.md")
    return 0


def read_claims() -> dict[str, Claim]:
    """Return the claims of results.yaml by their names.

    Raises:
        ParamsError: if the file is not there or no mapping.
        ArtifactError: with one line for each claim and key that is not usable.
    """
    problems: list[str] = []
    claims: dict[str, Claim] = {}
    for name, values in read_mapping(PATH, "a mapping of claims", "benchmarks/").items():
        claim = check_section(Claim, values, str(name), problems)
        if isinstance(claim, Claim):
            claims[str(name)] = claim
            for key, names in (("runs", claim.runs), ("networks", claim.networks)):
                problems += [f"{name}.{key}: {each} comes twice" for each, times in Counter(names).items() if times > 1]
    if problems:
        raise ArtifactError("\n".join(f"{PATH}: {problem}" for problem in problems))
    return claims


def read_former(path: Path) -> dict[str, Any]:
    """Return what the file said before, or nothing if there is none.

    Raises:
        ArtifactError: if a merge left it broken: one of its versions knows costs that are nowhere else.
    """
    try:
        former: dict[str, Any] = artifacts.read_json(path) if path.exists() else {}
    except ArtifactError as error:
        msg = f"{path}: no JSON; after a merge, choose one version: `git checkout --ours {path}`"
        raise ArtifactError(msg) from error
    return former


def measure_claim(name: str, claim: Claim, former: dict[str, Any]) -> dict[str, Any]:
    """Return value, interval, seeds, command and verdict of a claim, and what is known of its costs and protocol."""
    if claim.networks:
        return measure_networks(name, claim)
    return measure_spread(name, claim, Path(claim.spread)) if claim.spread else measure_runs(name, claim, former)


def measure_runs(name: str, claim: Claim, former: dict[str, Any]) -> dict[str, Any]:
    """Return value, interval, seeds, counts, costs, protocol, commits and verdict of a claim; no value if not measured.

    Args:
        name: the claim's name.
        claim: what is claimed.
        former: the same of an earlier time, or nothing; its costs stay where the runs' records are not at hand.

    Raises:
        ProtocolError: if the runs have different protocols of the metric.
        ArtifactError: if a file of a run or the metric is missing, or the runs differ in more than the seed.
    """
    everyone = [*claim.runs, *claim.against]
    folders = {run: artifacts.REPORTS / "runs" / run for run in everyone}
    command = "dvc repro " + " ".join(f"evaluate@{run}" for run in everyone)
    made = {run for run, folder in folders.items() if (folder / "metrics.json").exists()}
    if claim.optional and not all(made.intersection(group) for group in (claim.runs, claim.against) if group):
        return {"value": None, "command": make_command(command), "must": claim.must, "aim": claim.aim}
    metrics = {run: artifacts.read_json(folder / "metrics.json") for run, folder in folders.items()}
    sets = {run: artifacts.read_json(folder / "sets.json") for run, folder in folders.items()}
    contents = {run: read_protocol(folder) for run, folder in folders.items()}
    where = f"{PATH}: {name}.runs"
    seeds = check_runs(where, {run: contents[run] for run in claim.runs})
    if any(seeds != check_runs(where, {run: contents[run] for run in group}) for group in claim.groups):
        msg = f"{PATH}: {name}.against: expected the seeds {seeds}, in this order"
        raise ArtifactError(msg)
    for run, found in metrics.items():
        if claim.metric not in found:
            msg = f"{PATH}: {name}.metric: no metric {claim.metric!r} in runs {run}; there are {', '.join(found)}"
            raise ArtifactError(msg)
    if refusals := find_refusals([claim.metric], contents):
        msg = f"{PATH}: {name}: {format_refusals(refusals)[0]}"
        raise ProtocolError(msg)
    values = read_values(claim)
    if not claim.against:
        check_direction(name, claim, values)
    tables = {run: sets[run].get(claim.metric, [metrics[run][claim.metric]]) for run in everyone}
    if claim.by == "multiplier":
        judged, sample_sets = measure_multiplier(name, claim, tables, values)
        rows = {}
    else:
        table = compare_pairs(claim, tables) if claim.against else list(tables.values())
        judged, sample_sets = summarize_claim(claim, table)
        rows = dict(zip(seeds, table, strict=True))
    costs = measure_costs(claim, former, judged["value"], rows)
    if judged["verdict"] == "reached" and any(find_flaw(values, found, claim.metric) for found in metrics.values()):
        judged["verdict"] = "inconclusive"  # the value is marked as not reliable
    return {
        **judged,
        "seeds": seeds,
        "sample_sets": sample_sets,
        "counts": find_counts(values, claim.metric, metrics[claim.runs[0]]),
        **costs,
        "protocol": contents[claim.runs[0]]["values"][claim.metric]["hash"],
        "command": make_command(f"OMP_NUM_THREADS={costs['threads']} {command}" if costs else command),
    }


def summarize_claim(claim: Claim, table: list[list[float]]) -> tuple[dict[str, Any], int]:
    """Return value, interval or why there is none, targets and verdict of values per seed, and the number of sets."""
    summary = summarize_seeds(table)
    interval = None if math.isnan(summary.low) else [summary.low, summary.high]
    return {
        "value": summary.mean,
        "interval": interval,
        **({"no_interval": summary.reason} if summary.reason else {}),
        "must": claim.must,
        "aim": claim.aim,
        "verdict": judge_claim(claim, interval or [sum(row) / len(row) for row in table]),
    }, summary.sets


def measure_networks(name: str, claim: Claim) -> dict[str, Any]:
    """Return value, interval, seeds, command and verdict of a claim about feature networks.

    Raises:
        ArtifactError: if a network is not made, lacks the number, or differs from the first one in more than the seed.
    """
    paths = [artifacts.REPORTS / "networks" / f"{network}.json" for network in claim.networks]
    if claim.optional and not any(path.exists() for path in paths):
        return {"value": None, "command": _make_network_command(claim), "must": claim.must, "aim": claim.aim}
    if claim.metric.endswith(ACCURACY) and claim.lower_is_better:
        msg = f"{PATH}: {name}.lower_is_better: {claim.metric} is better when it is higher, got true"
        raise ArtifactError(msg)
    sections = params.load().networks
    configs = {network: artifacts.encode(sections[network]) for network in claim.networks if network in sections}
    found = {network: artifacts.read_json(artifacts.REPORTS / "networks" / f"{network}.json") for network in configs}
    for network in claim.networks:
        if network not in configs or claim.metric not in found[network]:
            known = ", ".join(found.get(network, sections))
            msg = f"{PATH}: {name}: no {claim.metric!r} of a network {network!r}; there are {known}"
            raise ArtifactError(msg)
    for network in configs:
        check_network(name, network, found[network])
    first = configs[claim.networks[0]]
    for network, config in configs.items():
        if keys := [key for key, *_ in list_differences(first, config) if key != "seed"]:
            msg = f"{PATH}: {name}.networks: expected networks that differ only in the seed, {network}: {keys}"
            raise ArtifactError(msg)
    judged, _ = summarize_claim(claim, [[found[network][claim.metric]] for network in claim.networks])
    seeds = [config["seed"] for config in configs.values()]
    return {**judged, "seeds": seeds, "command": _make_network_command(claim)}


def measure_spread(name: str, claim: Claim, folder: Path) -> dict[str, Any]:
    """Return value, interval, seeds, counts, protocol, command and verdict of a claim about the trainings of one run.

    Raises:
        ArtifactError: if the run lacks the trainings or the metric, or its own numbers are none of theirs.
    """
    if claim.optional and not (folder / trainings.NAME).exists():
        return {"value": None, "must": claim.must, "aim": claim.aim}
    project = folder.parents[2]
    read = reproduce.read_claims(project, folder.name)
    content = read["protocol"]
    spread = trainings.read(project, folder.name, read)
    if not spread:
        msg = f"{folder / trainings.NAME}: expected trainings of the run's present numbers: run `pipeline spread` again"
        raise ArtifactError(msg)
    if claim.metric not in spread["values"]:
        msg = f"{PATH}: {name}.metric: no metric {claim.metric!r} in {folder}; there are {', '.join(spread['values'])}"
        raise ArtifactError(msg)
    values = load_values(content["protocol"]["metric"]["name"])
    check_direction(name, claim, values)
    judged, _ = summarize_claim(claim, [[value] for value in spread["values"][claim.metric]["trainings"]])
    if judged["verdict"] == "reached" and find_flaw(values, read["metrics"], claim.metric):
        judged["verdict"] = "inconclusive"  # the value is marked as not reliable
    seeds = " ".join(str(seed) for seed in spread["seeds"] if seed != content["run"]["seed"])
    return {
        **judged,
        "seeds": spread["seeds"],
        "sample_sets": len(read["sets"].get(claim.metric, [0])),
        "counts": find_counts(values, claim.metric, read["metrics"]),
        "protocol": content["values"][claim.metric]["hash"],
        "command": make_command(f"cd {project} && pipeline spread {folder.name} --seeds {seeds}"),
    }


def check_network(name: str, network: str, about: dict[str, Any]) -> None:
    """Refuse numbers of a feature network whose weights, where they are here, are others.

    Raises:
        ArtifactError: with the network.
    """
    folder = artifacts.NETWORKS / network
    if folder.exists() and artifacts.digest(artifacts.find_weights(folder)) != about.get("weights_sha256"):
        msg = (
            f"{PATH}: {name}.networks: the numbers of {network} are not of its weights: `dvc repro networks@{network}`"
        )
        raise ArtifactError(msg)


def _make_network_command(claim: Claim) -> str:
    return make_command("dvc repro " + " ".join(f"networks@{network}" for network in claim.networks))


def compare_pairs(claim: Claim, tables: dict[str, list[float]]) -> list[list[float]]:
    """Return the difference, or the ratio, of the means over the sets of each pair of runs."""
    means = {run: sum(values) / len(values) for run, values in tables.items()}
    pairs = [(means[run], means[other]) for run, other in zip(claim.runs, claim.against, strict=True)]
    return [[value / base if claim.by == "ratio" else value - base] for value, base in pairs]


def measure_multiplier(
    name: str, claim: Claim, tables: dict[str, list[float]], values: Values
) -> tuple[dict[str, Any], int]:
    """Return what `summarize_claim` does, of the multiplier of each seed; `bound` says whether one is a bound.

    Raises:
        ArtifactError: if the sizes do not grow, or a curve does not get better with them.
    """
    means = {run: sum(each) / len(each) for run, each in tables.items()}
    sizes = {run: read_size(name, run) for run in means}
    sign = 1 if find_value(values, claim.metric).direction == "lower" else -1
    found: list[tuple[float, str]] = []
    for place, run in enumerate(claim.runs):
        curve = [(sizes[group[place]], sign * means[group[place]]) for group in claim.groups]
        try:
            size, bound = find_size(curve, sign * means[run])
        except ValueError as error:
            msg = f"{PATH}: {name}.against, to compare with {run}: {error}"
            raise ArtifactError(msg) from error
        found.append((size / sizes[run], bound))
    judged, sample_sets = summarize_claim(claim, [[multiplier] for multiplier, _ in found])
    bounds = {bound for _, bound in found if bound}
    if bounds:
        verdict = judge_claim(claim, [multiplier for multiplier, _ in found])
        spoiled = {"reached": "at most", "missed": "more than"}.get(verdict)  # bounds that leave the verdict open
        verdict = "inconclusive" if spoiled in bounds else verdict
        judged |= {"interval": None, "no_interval": "bounds have no interval", "verdict": verdict}
        judged["bound"] = bounds.pop() if len(bounds) == 1 else "roughly"
    return judged, sample_sets


def find_size(curve: list[tuple[int, float]], value: float) -> tuple[float, str]:
    """Return the size at which a curve falls to a value, and "more than" or "at most" if that is a measured end of it.

    Between two sizes the curve is a line over the logarithm of the size.

    Args:
        curve: sizes and values, lower is better, the smallest size first.
        value: to be reached.

    Raises:
        ValueError: if sizes or values are in no order.
    """
    steps = list(itertools.pairwise(curve))
    if any(size >= larger or worse <= better for (size, worse), (larger, better) in steps):
        msg = f"expected growing sizes with better and better values, got {curve}"
        raise ValueError(msg)
    if curve[0][1] <= value:
        return curve[0][0], "at most"
    for (size, worse), (larger, better) in steps:
        if better <= value:
            share = (worse - value) / (worse - better)
            return size * (larger / size) ** share, ""
    return curve[-1][0], "more than"


def read_size(name: str, run: str) -> int:
    """Return the training data of a run by params.yaml.

    Raises:
        ArtifactError: if its section of data has no limit.
    """
    settings = params.load()
    limit: int = getattr(settings.data[settings.runs[run].data], "train_limit", 0) if run in settings.runs else 0
    if not limit:
        msg = f"{PATH}: {name}: expected a train_limit of the data of the run {run} in {params.PATH}, got none"
        raise ArtifactError(msg)
    return limit


def check_direction(name: str, claim: Claim, values: Values) -> None:
    """Refuse a claim whose direction is not that of its metric.

    Raises:
        ArtifactError: if the metric declares the other direction.
    """
    direction = find_value(values, claim.metric).direction
    if direction == ("higher" if claim.lower_is_better else "lower"):
        got = str(claim.lower_is_better).lower()
        msg = f"{PATH}: {name}.lower_is_better: {claim.metric} is better when it is {direction}, got {got}"
        raise ArtifactError(msg)


def read_values(claim: Claim) -> Values:
    """Return the declarations of the metric that has evaluated a claim's runs."""
    folder = Path(claim.spread) if claim.spread else artifacts.REPORTS / "runs" / claim.runs[0]
    return load_values(read_protocol(folder)["protocol"]["metric"]["name"])


def make_command(command: str) -> str:
    """Return a command that works from the repository's root."""
    done = subprocess.run(["git", "rev-parse", "--show-prefix"], capture_output=True, text=True, check=False)
    folder = done.stdout.strip().rstrip("/")  # nothing at the root and outside of a repository
    return f"cd {folder} && {command}" if folder else command


def find_counts(values: Values, metric: str, metrics: dict[str, float]) -> dict[str, float]:
    """Return the count that a metric rests on, by its name; nothing if the run does not have it."""
    count = find_count(values, metric)
    return {count: metrics[count]} if count in metrics else {}


def judge_claim(claim: Claim, ends: list[float]) -> str:
    """Return "reached", "missed" or "inconclusive", by the interval's ends, or without one by the seeds' values."""
    good = [
        # the mean of equal sets may differ from their value by its last bits
        math.isclose(end, claim.must, rel_tol=1e-12) or (end < claim.must) == claim.lower_is_better
        for end in ends
    ]
    return "reached" if all(good) else "inconclusive" if any(good) else "missed"


def is_same(former: float | None, value: float) -> bool:
    """Say whether a claim's value is still the former one, up to how files of another machine were rounded."""
    return former is not None and math.isclose(former, value, abs_tol=1e-12)


def measure_costs(
    claim: Claim, former: dict[str, Any], value: float, rows: Mapping[int, Sequence[float]]
) -> dict[str, Any]:
    """Return the largest time and memory of a claim's trainings, machine and commits, from their records or `former`.

    Those of `former` are kept where records are not at hand, if the value is the same but for new seeds.
    There are none for a new claim about runs whose metrics are committed and whose records are elsewhere.

    Args:
        claim: what is claimed.
        former: what results.json said before, or nothing.
        value: the claim's value now.
        rows: values of the sets by seed, from which the former value follows if seeds were added; or nothing.

    Raises:
        ArtifactError: if a record is missing, and what it is of has another value than before or none.
    """
    everyone = [*claim.runs, *claim.against]
    paths = {run: artifacts.RUNS / run / "record" / "run.json" for run in everyone}
    is_whole = all(path.exists() for path in paths.values())
    known, needed = ({}, everyone) if is_whole else keep_costs(claim, former, value, rows)
    if not needed:
        return known
    records = [artifacts.read_json(paths[run]) for run in needed]
    costs = [record["totals"] | record["environment"] for record in records]
    costs += [known | {"seconds": known["training_seconds"]}] if known else []
    longest = max(costs, key=lambda cost: cost["seconds"])
    commits = {record["tags"].get("mlflow.source.git.commit", "") for record in records}
    return {
        "training_seconds": longest["seconds"],
        **{name: max(cost[name] for cost in costs) for name in ("cpu_seconds", "peak_memory_mib")},
        **{name: longest[name] for name in ("processor", "threads")},
        "commits": sorted(commits.union(known.get("commits", ()))),
    }


def keep_costs(
    claim: Claim, former: dict[str, Any], value: float, rows: Mapping[int, Sequence[float]]
) -> tuple[dict[str, Any], list[str]]:
    """Return the costs that results.json knows of a claim, and the runs that they are not of; see `measure_costs`."""
    known = {name: former[name] for name in COSTS if name in former}
    if former.get("value") is None:
        return known, []
    everyone, seeds = [*claim.runs, *claim.against], former.get("seeds", [])
    groups = [zip(rows, group, strict=False) for group in (claim.runs, claim.against)]
    new = [run for group in groups for seed, run in group if seed not in seeds]
    if new:
        if not seeds or not rows.keys() >= set(seeds):
            return {}, everyone
        value = summarize([rows[seed] for seed in seeds]).mean  # as it was without them
    return (known, new if known else []) if is_same(former["value"], value) else ({}, everyone)


def read_speed(speed: dict[str, Any]) -> dict[str, Any]:
    """Return the ratios of benchmarks/speed: median, least and largest, of what, where, and by which commit."""
    command = make_command("python -m speed")
    return {
        name: {
            "value": row["ratio"],
            "interval": [row["low"], row["high"]],
            "interval_is": "least to largest of the repeats",
            "repeats": row["repeats"],
            "detail": row["detail"],
            "wanted": row["wanted"],
            "command": command,
            "processor": row["processor"],
            "threads": row["threads"],
            **{key: row[key] for key in LATER if row.get(key)},
        }
        for name, row in speed["rows"].items()
    }


def format_table(claims: dict[str, Claim], results: dict[str, Any]) -> str:
    """Return the Markdown table."""
    columns = "value | 95 % interval | seeds | counts | must | aim | training, at most | CPU | memory | protocol"
    lines = [f"| benchmark | {columns} |", "|---|---:|---|---:|---|---:|---:|---:|---:|---:|---|"]
    for name, claim in claims.items():
        found = results[name]
        if found["value"] is None:
            wanted = f"{claim.must:g} | {claim.aim:g}"
            lines.append(f"| {claim.title} (`{name}`) | not measured here | | | | {wanted} | | | | |")
            continue
        low, high = found["interval"] or (math.nan, math.nan)
        interval = format_interval(low, high, found.get("no_interval", ""))
        value = " ".join([*([found["bound"]] if "bound" in found else []), format_number(found["value"])])
        value = f"**{value}**" if found["verdict"] == "reached" else f"{value} ({found['verdict']})"
        beginning = f"| {claim.title} (`{name}`) | {value} | {interval} | {len(found['seeds'])} "
        wanted = f"{claim.must:g} | {claim.aim:g}"
        if claim.networks:
            lines.append(f"{beginning}| | {wanted} | | | | |")
            continue
        costs = "| | |"
        if set(COSTS) <= found.keys():
            times = f"{found['training_seconds']:,.0f} s | {found['cpu_seconds']:,.0f} s"
            costs = f"| {times} | {found['peak_memory_mib']:,.0f} MiB"
        lines.append(
            f"{beginning}| {format_counts(found, read_values(claim))} | {wanted} {costs} | `{found['protocol']}` |"
        )
    return "\n".join(lines) + "\n"


def format_counts(found: dict[str, Any], values: Values) -> str:
    """Return the counts that a claim rests on, per seed: `3 x 10,000 samples`, `111,539 targets`."""
    times = f"{found['sample_sets']} x " if found["sample_sets"] > 1 else ""
    counts = found["counts"].items()
    return ", ".join(f"{times}{format_number(count)} {find_value(values, name).unit}" for name, count in counts)
