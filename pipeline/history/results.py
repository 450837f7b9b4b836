"""Reads a run's evaluation from reports/runs/<run>, and finds what of it is shown first: headlines and intervals."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.evidence.protocol import check_content, make_tags
from pipeline.evidence.uncertainty import format_number
from pipeline.evidence.values import (
    REAL,
    Role,
    Values,
    find_companion,
    find_flaw,
    find_interval,
    find_value,
    is_measurement,
    load_values,
    sort_names,
)

MOST_HEADLINES = 8  # of a run, in tables that show many runs


@dataclass(frozen=True)
class Results:
    """An evaluation: its numbers, the values of each set of samples, what the metric declares, what the run shows.

    tags: `protocol.<value>` is the hash of the value's protocol.
    folder: reports/runs/<run>, with the files that the numbers are in and the exhibits in samples/.
    """

    metrics: Mapping[str, float]
    sets: Mapping[str, list[float]] = field(default_factory=dict)
    values: Values = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def find_interval(self, name: str) -> tuple[float, float]:
        """Return the 95 % interval of a value, or not a number."""
        return find_interval(self.values, name, {"metrics": self.metrics, "sets": self.sets})

    def list_headlines(self) -> list[str]:
        """Return the names of the measurements that the metric declares as headlines, in its order."""
        return list_headlines(self.values, self.metrics)

    def find_real(self, name: str) -> list[tuple[Role, str]]:
        """Return the values of real data next to a value: role and name."""
        found = [(role, find_companion(self.values, name, role)) for role in REAL]
        return [(role, companion) for role, companion in found if companion in self.metrics]

    def describe(self, name: str) -> str:
        """Return a value as text: 6.045 (3.231 to 8.859), floor 3.374."""
        low, high = self.find_interval(name)
        text = format_number(self.metrics[name])
        if not math.isnan(low):
            text += f" ({format_number(low)} to {format_number(high)})"
        text += "".join(f", {role} {format_number(self.metrics[other])}" for role, other in self.find_real(name))
        flaw = find_flaw(self.values, self.metrics, name)
        return f"{text}, {flaw}" if flaw else text


def read_results(run: str, metric: str) -> Results | None:
    """Read the evaluation of a run; None before there is one.

    Of a metric plug-in that this version lacks no value is declared, so that none is a headline.

    Raises:
        ArtifactError: if a file is broken.
    """
    folder = artifacts.REPORTS / "runs" / run
    metrics, sets, protocol = (folder / f"{name}.json" for name in ("metrics", "sets", "protocol"))
    if not metrics.exists():
        return None
    content = check_content(artifacts.read_json(protocol), str(protocol)) if protocol.exists() else {"values": {}}
    declared: Values = {}
    with contextlib.suppress(ArtifactError):
        declared = load_values(metric)
    return Results(
        metrics=artifacts.read_json(metrics),
        sets=artifacts.read_json(sets) if sets.exists() else {},
        values=declared,
        tags=make_tags(content),
        folder=folder,
    )


def list_headlines(values: Values, metrics: Mapping[str, float]) -> list[str]:
    """Return at most MOST_HEADLINES names of measurements that are declared as headlines, in the metric's order."""
    names = [name for name in sort_names(values, metrics) if is_measurement(values, name)]
    return [name for name in names if find_value(values, name).headline][:MOST_HEADLINES]
