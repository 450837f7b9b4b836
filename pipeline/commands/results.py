"""Gathers the benchmarks' claims from the runs that they name, into results.json and a table, results.md.

    cd benchmarks && pipeline results

results.yaml names each claim: its runs (one a seed), metric, direction, and the values to reach. Runs of one claim must
have been evaluated by one protocol and differ in nothing but the seed. An optional claim none of whose runs is there is
said to be not measured here. In a fresh clone the metrics are there, but not the records of the trainings: then what
results.json says of time and memory stays, if the value is still the same. The ratios of speed.json, where there is
one, become claims of results.json, too.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from pydantic import Field
from ruamel.yaml import YAML

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.params import Section
from pipeline.protocol import require_equal
from pipeline.uncertainty import summarize

PATH, SPEED = Path("results.yaml"), Path("speed.json")
COSTS = ("training_seconds", "cpu_seconds", "peak_memory_mib", "processor", "threads", "commits")


class Claim(Section):
    """One line of the table."""

    title: str = Field(description="what was measured, by which protocol")
    runs: list[str] = Field(min_length=1, description="runs of params.yaml, one a seed")
    metric: str = Field(description="a metric of those runs")
    lower_is_better: bool
    must: float = Field(description="what had to be reached")
    aim: float = Field(description="what was aimed at")
    source: str = Field(description="where the value to reach comes from")
    optional: bool = Field(default=False, description="may be missing: what it needs is not everywhere at hand")


def main(arguments: list[str]) -> int:
    """Write results.json and results.md."""
    argparse.ArgumentParser(
        prog="pipeline results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    if not PATH.exists():
        msg = f"{PATH.resolve()}: not found; run from benchmarks/"
        raise ArtifactError(msg)
    claims = {name: Claim.model_validate(values) for name, values in YAML(typ="safe", pure=True).load(PATH).items()}
    former = read_former(Path("results.json"))
    results = {name: measure(claim, former.get(name, {})) for name, claim in claims.items()}
    speed = read_speed(artifacts.read_json(SPEED)) if SPEED.exists() else {}
    artifacts.write_json(Path("results.json"), results | speed)
    Path("results.md").write_text(render(claims, results), encoding="utf-8")
    measured = sum(found["value"] is not None for found in results.values())
    print(f"{measured} of {len(results)} benchmarks are measured: results.json, results.md")
    return 0


def read_former(path: Path) -> dict[str, Any]:
    """Return what the file said before, or nothing if there is none.

    Raises:
        ArtifactError: if a merge left it broken: one of its versions knows costs that are nowhere else.
    """
    try:
        former: dict[str, Any] = artifacts.read_json(path) if path.exists() else {}
    except ValueError as error:
        msg = f"{path}: no JSON ({error}); after a merge, choose one version: `git checkout --ours {path}`"
        raise ArtifactError(msg) from error
    return former


def measure(claim: Claim, former: dict[str, Any]) -> dict[str, Any]:
    """Return value, interval, seeds, counts, costs, protocol and commits of one claim; no value if not measured.

    Args:
        claim: what is claimed.
        former: the same of an earlier time, or nothing; its costs stay where the runs' records are not at hand.

    Raises:
        ProtocolError: if its runs were evaluated by different protocols.
        ArtifactError: if a file of a run is missing.
    """
    folders = {run: artifacts.REPORTS / "runs" / run for run in claim.runs}
    command = "dvc repro " + " ".join(f"evaluate@{run}" for run in claim.runs)
    if claim.optional and not any((folder / "metrics.json").exists() for folder in folders.values()):
        return {"value": None, "command": command, "must": claim.must, "aim": claim.aim}
    metrics = {run: artifacts.read_json(folder / "metrics.json") for run, folder in folders.items()}
    sets = {run: artifacts.read_json(folder / "sets.json") for run, folder in folders.items()}
    about = {run: artifacts.read_json(folder / "protocol.json") for run, folder in folders.items()}
    require_equal({run: entry["protocol"] for run, entry in about.items()})
    require_equal({run: {**entry["run"], "seed": None} for run, entry in about.items()})
    summary = summarize([sets[run].get(claim.metric, [metrics[run][claim.metric]]) for run in claim.runs])
    reached = summary.mean <= claim.must if claim.lower_is_better else summary.mean >= claim.must
    first = metrics[claim.runs[0]]
    counts = {name: first[name] for name in first if name == "samples" or name.endswith("_targets")}
    return {
        "value": summary.mean,
        "interval": None if math.isnan(summary.low) else [summary.low, summary.high],
        "seeds": [about[run]["run"]["seed"] for run in claim.runs],
        "sample_sets": summary.sets,
        "counts": counts,
        **measure_costs(claim, former if is_same(former.get("value"), summary.mean) else {}),
        "protocol": about[claim.runs[0]]["hash"],
        "command": command,
        "must": claim.must,
        "aim": claim.aim,
        "reached": reached,
    }


def is_same(former: float | None, value: float) -> bool:
    """Say whether a claim's value is still the former one, up to how files of another machine were rounded."""
    return former is not None and math.isclose(former, value, abs_tol=1e-12)


def measure_costs(claim: Claim, former: dict[str, Any]) -> dict[str, Any]:
    """Return the largest time and memory of a claim's trainings, machine and commits, from their records or `former`.

    Raises:
        ArtifactError: if neither is there.
    """
    paths = [artifacts.RUNS / run / "record" / "run.json" for run in claim.runs]
    if set(COSTS) <= former.keys() and not all(path.exists() for path in paths):
        return {name: former[name] for name in COSTS}
    records = [artifacts.read_json(path) for path in paths]
    largest = {name: max(record["totals"][name] for record in records) for name in ("cpu_seconds", "peak_memory_mib")}
    seconds = max(record["totals"]["seconds"] for record in records)
    machine = {name: records[0]["environment"][name] for name in ("processor", "threads")}
    commits = sorted({record["tags"].get("mlflow.source.git.commit", "") for record in records})
    return {"training_seconds": seconds, **largest, **machine, "commits": commits}


def read_speed(speed: dict[str, Any]) -> dict[str, Any]:
    """Return the ratios of speed.py: median, least and largest, repeats, and on which machine."""
    return {
        name: {
            "value": row["ratio"],
            "interval": [row["low"], row["high"]],
            "repeats": row["repeats"],
            "detail": row["detail"],
            "wanted": row["wanted"],
            "command": "python speed.py",
            "processor": row["processor"],
            "threads": row["threads"],
        }
        for name, row in speed["rows"].items()
    }


def render(claims: dict[str, Claim], results: dict[str, Any]) -> str:
    """Return the Markdown table."""
    lines = [
        "| benchmark | value | 95 % interval | seeds | must | aim | training, at most | memory |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for name, claim in claims.items():
        found = results[name]
        if found["value"] is None:
            lines.append(f"| {claim.title} (`{name}`) | not measured here | | | {claim.must:g} | {claim.aim:g} | | |")
            continue
        interval = "" if found["interval"] is None else "{:.4g} to {:.4g}".format(*found["interval"])
        value = f"**{found['value']:.4g}**" if found["reached"] else f"{found['value']:.4g} (missed)"
        lines.append(
            f"| {claim.title} (`{name}`) | {value} | {interval} | {len(found['seeds'])} | {claim.must:g} "
            f"| {claim.aim:g} | {found['training_seconds']:.0f} s | {found['peak_memory_mib']:.0f} MiB |"
        )
    return "\n".join(lines) + "\n"
