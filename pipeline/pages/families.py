"""Tables of families of models: what they reach on the same data by one protocol, at which cost and speed.

`pipeline results` writes them below the claims, where a folder has a families.yaml. A family has one run per seed, and
its values are means over these, with 95 % intervals. The cost is the processor time of the training, with that of the
runs that it starts from, of the slowest seed. The speed is that of drawing COUNT samples of one run, a median of
REPEATS, by as many threads as PyTorch has here. Both need the trainings' records and weights. Where these are not at
hand, families.json keeps what was measured, as long as the values are the same.
"""

import math
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.evidence.protocol import ProtocolError, check_runs, find_refusals, format_refusals, read_protocol
from pipeline.evidence.uncertainty import format_interval, format_number, summarize_seeds
from pipeline.kinds import draw_sets
from pipeline.params import Section, check_section, read_mapping
from pipeline.weights import load_model

PATH, RESULTS = Path("families.yaml"), Path("families.json")
COUNT, REPEATS = 100, 3
MEASURED = ("cpu_seconds", "samples_per_second", "processor", "threads")


class Table(Section):
    """One section of families.yaml."""

    title: str = Field(description="what was trained on what, by which protocol")
    columns: dict[str, str] = Field(description="headings by metric; a family may lack some of the metrics")
    families: dict[str, list[str]] = Field(description="runs of params.yaml by family, one per seed")


def write(machine: Mapping[str, str]) -> str:
    """Write families.json; return the tables, in Markdown.

    machine: its `processor` and `threads`.

    Raises:
        ArtifactError: if the file is not usable, or a family's runs differ in more than the seed.
        ProtocolError: if a column has values of different protocols.
    """
    problems: list[str] = []
    sections = read_mapping(PATH, "a mapping of tables", "benchmarks/families/")
    tables = {name: check_section(Table, values, str(name), problems) for name, values in sections.items()}
    if problems:
        raise ArtifactError("\n".join(f"{PATH}: {problem}" for problem in problems))
    former = artifacts.read_json(RESULTS) if RESULTS.exists() else {}
    found, texts = {}, []
    for name, table in tables.items():
        if isinstance(table, Table):
            found[name] = fill(name, table, former.get(name, {}), machine)
            texts.append(format_table(table, found[name]))
    artifacts.write_json(RESULTS, found)
    return "".join(texts)


def fill(name: str, table: Table, former: Mapping[str, Any], machine: Mapping[str, str]) -> dict[str, Any]:
    """Return what is known of each family of a table; `former`: what families.json has of it."""
    folders = {run: artifacts.REPORTS / "runs" / run for runs in table.families.values() for run in runs}
    contents = {run: read_protocol(folder) for run, folder in folders.items()}
    if refusals := find_refusals(table.columns, contents):
        msg = f"{PATH}: {name}: {format_refusals(refusals)[0]}"
        raise ProtocolError(msg)
    found: dict[str, Any] = {}
    for family, runs in table.families.items():
        place = f"{PATH}: {name}.families.{family}"
        if len(set(runs)) < len(runs) or not runs:
            msg = f"{place}: expected different runs, one per seed, got {', '.join(runs) or 'none'}"
            raise ArtifactError(msg)
        check_runs(place, {run: contents[run] for run in runs})
        values = summarize_runs(table.columns, runs)
        found[family] = {"runs": runs, "values": values} | measure(runs, values, former.get(family, {}), machine)
    return found


def summarize_runs(names: Iterable[str], runs: list[str]) -> dict[str, Any]:
    """Return mean and interval over runs of those metrics that all of them have."""
    folders = [artifacts.REPORTS / "runs" / run for run in runs]
    numbers, sets = (
        [artifacts.read_json(folder / f"{name}.json") for folder in folders] for name in ("metrics", "sets")
    )
    values = {}
    for name in names:
        if all(name in each for each in numbers):
            summary = summarize_seeds([own.get(name, [each[name]]) for own, each in zip(sets, numbers, strict=True)])
            interval = None if math.isnan(summary.low) else [summary.low, summary.high]
            values[name] = {"mean": summary.mean, "interval": interval}
    return values


def measure(
    runs: list[str], values: Mapping[str, Any], former: Mapping[str, Any], machine: Mapping[str, str]
) -> dict[str, Any]:
    """Return cost and speed of a family, measured here or as they were; nothing if neither is known."""
    model, records = artifacts.RUNS / runs[0] / "model", [read_records(run) for run in runs]
    if not model.exists() or not all(records):
        is_same = (former.get("runs"), former.get("values")) == (runs, values)
        return {name: former[name] for name in MEASURED if name in former} if is_same else {}
    return {
        "cpu_seconds": max(sum(each["totals"]["cpu_seconds"] for each in chain) for chain in records),
        "samples_per_second": measure_speed(model),
        **{name: machine[name] for name in ("processor", "threads")},
    }


def read_records(run: str) -> list[dict[str, Any]]:
    """Return the records of a run, of the run that it starts from, and so on; nothing if one is not at hand."""
    path = artifacts.RUNS / run / "record" / "run.json"
    if not path.exists():
        return []
    record = artifacts.read_json(path)
    about = record["config"]["run"]
    start = about.get("start", params.NONE)
    if start == params.NONE or about.get("weights"):  # weights from outside cost nothing here
        return [record]
    before = read_records(start)
    return [record, *before] if before else []


def measure_speed(folder: Path) -> float:
    """Return how many samples a second a saved model draws."""
    loaded = load_model(folder)
    seconds = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        draw_sets(loaded, 0, COUNT, 1)
        if loaded.model.device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - begun)
    return COUNT / statistics.median(seconds[1:])  # the first one warms up


def format_table(table: Table, found: Mapping[str, Any]) -> str:
    """Return the table in Markdown, with its title and with the machines that costs and speeds are of."""
    headings = ["family", "seeds", *table.columns.values(), "CPU", "samples a second"]
    lines = [f"\n{table.title}:\n", f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
    machines: dict[str, list[str]] = {}
    for family, about in found.items():
        cells = [family, str(len(about["runs"]))]
        cells += [_format_value(about["values"].get(metric)) for metric in table.columns]
        if "processor" in about:
            speed = float(f"{about['samples_per_second']:.3g}")
            cells += [f"{about['cpu_seconds']:,.0f} s", f"{speed:,g}"]
            machines.setdefault(f"{about['processor']} (threads: {about['threads']})", []).append(family)
        else:
            cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\nCost and speed on {machine}: {', '.join(families)}." for machine, families in machines.items()]
    return "\n".join(lines) + "\n"


def _format_value(value: Mapping[str, Any] | None) -> str:
    if not value:
        return ""
    low, high = value["interval"] or (math.nan, math.nan)
    return f"{format_number(value['mean'])} {format_interval(low, high)}".strip()
