"""Charts of results: bars with intervals and floors, cost against quality, and curves over the training steps."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from pipeline import artifacts
from pipeline.evidence.uncertainty import format_number
from pipeline.evidence.values import find_value
from pipeline.pages.results import Page, Table

mpl.use("svg")
from matplotlib import pyplot as plt

MARKS = (0.0, 0.5, 1.0)  # of an axis
SPAN = 20.0  # from the smallest to the largest value, beyond which an axis is logarithmic
COLORS = 6  # of components.css; more runs have the same colours with other dashes
DASHES = ("", "6 3", "2 2", "8 3 2 3")


@dataclass(frozen=True)
class Bar:
    """A run's value, with places in percent of the width: its interval (None without one) and that of real data."""

    run: str
    color: int
    text: str
    start: float
    end: float
    low: float | None
    high: float | None
    real: float | None


@dataclass(frozen=True)
class Bars:
    """One measurement of several runs."""

    name: str
    unit: str
    better: str
    bars: list[Bar]


@dataclass(frozen=True)
class Dot:
    """A run in a plane of cost and quality, with places in percent."""

    run: str
    color: int
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Plane:
    """Cost against quality of the runs that one metric has evaluated; ticks are pairs of place and text."""

    name: str
    better: str
    dots: list[Dot]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    is_logarithmic: bool  # upwards


def pick_color(names: Sequence[str], run: str) -> int:
    """Return the number of a run's colour."""
    return list(names).index(run) % COLORS


def make_bars(table: Table, runs: Sequence[str]) -> list[Bars]:
    """Return the headline measurements of a table as bars."""
    names = [name for name in table.names if any(name in page.headlines for page in table.pages)]
    return [make_bar(table, name, runs) for name in names]


def make_bar(table: Table, name: str, runs: Sequence[str]) -> Bars:
    """Return one measurement as bars that share a scale, which holds 0."""
    pages = [page for page in table.pages if name in page.metrics]
    ends = [page.metrics[name] for page in pages]
    ends += [end for page in pages for end in page.interval(name) if not math.isnan(end)]
    ends += [real for page in pages if (real := page.real(name)) is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / width, 3)

    bars = []
    for page in pages:
        value, interval, real = page.metrics[name], page.interval(name), page.real(name)
        first, last = (None, None) if math.isnan(interval[0]) else map(place, interval)
        bars.append(
            Bar(
                run=page.name,
                color=pick_color(runs, page.name),
                text=format_number(value) + (f" ({page.say_range(name)})" if first is not None else ""),
                start=place(min(0.0, value)),
                end=place(max(0.0, value)),
                low=first,
                high=last,
                real=None if real is None else place(real),
            )
        )
    declared = find_value(table.values, name)
    return Bars(name, declared.unit, declared.direction, bars)


def make_plane(table: Table, runs: Sequence[str]) -> Plane | None:
    """Return cost against the first headline that most runs have; None of less than two runs with a record."""
    pages = [page for page in table.pages if page.about]
    names = sorted({name: None for page in pages for name in page.headlines}, key=lambda name: _count(pages, name))
    pages = [page for page in pages if names and names[-1] in page.metrics]
    if len(pages) < 2:
        return None
    name = next(each for each in table.names if _count(pages, each) == len(pages) and each in pages[0].headlines)
    costs = [page.about["totals"]["cpu_seconds"] / 60 for page in pages]
    values = [page.metrics[name] for page in pages]
    right = 1.1 * max(costs) or 1.0
    heights, ticks, is_logarithmic = place_values(values)
    dots = [
        Dot(
            run=page.name,
            color=pick_color(runs, page.name),
            x=round(100 * cost / right, 2),
            y=height,
            text=f"{page.name}: {format_number(value)} after {format_number(round(cost, 1))} CPU minutes",
        )
        for page, cost, value, height in zip(pages, costs, values, heights, strict=True)
    ]
    return Plane(
        name,
        find_value(table.values, name).direction,
        dots,
        [(100 * mark, f"{right * mark:.3g}") for mark in MARKS],
        ticks,
        is_logarithmic,
    )


def place_values(values: Sequence[float]) -> tuple[list[float], list[tuple[float, str]], bool]:
    """Return the heights of values in percent, three ticks, and whether the scale is logarithmic.

    It is where the largest is more than SPAN times the smallest: one bad run would hide how all others differ.
    """
    if is_logarithmic := min(values) > 0 and max(values) > SPAN * min(values):
        bottom, top = math.log(min(values) / 1.3), math.log(1.3 * max(values))
        heights = [(math.log(value) - bottom) / (top - bottom) for value in values]
        ticks = [math.exp(bottom + (top - bottom) * mark) for mark in MARKS]
    else:
        bottom, top = min(0.0, *values), 1.1 * max(*values, 0.0) or 1.0
        heights = [(value - bottom) / (top - bottom) for value in values]
        ticks = [bottom + (top - bottom) * mark for mark in MARKS]
    named = [(100 * mark, f"{tick:.3g}") for mark, tick in zip(MARKS, ticks, strict=True)]
    return [round(100 * height, 2) for height in heights], named, is_logarithmic


def _count(pages: Sequence[Page], name: str) -> int:
    return sum(name in page.metrics for page in pages)


def gather_curves(pages: Sequence[Page]) -> list[dict[str, Any]]:
    """Return every curve: title, and series of steps x and values y by run.

    Curves of one name are one chart, if the same metric has evaluated their runs: the losses of pictures and of texts
    share no scale.
    """
    charts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for place, page in enumerate(pages):
        for path in sorted((artifacts.REPORTS / "runs" / page.name / "curves").glob("*.csv")):
            steps, values = read_table(path)
            series = {
                "name": page.name,
                "color": place % COLORS,
                "dash": DASHES[place // COLORS % len(DASHES)],
                "x": steps,
                "y": [float(f"{value:.5g}") for value in values],  # a chart cannot tell more digits
            }
            charts.setdefault((page.run.metric, path.stem), []).append(series)
    return [{"title": name.replace("_", " "), "series": series} for (_, name), series in charts.items()]


def draw_curves(folder: Path) -> str:
    """Draw each table of <folder>/*.csv over its steps as one SVG; learning rates share one plot."""
    tables = {path.stem: read_table(path) for path in sorted(folder.glob("*.csv"))}
    groups: dict[str, list[str]] = {}
    for name in tables:
        groups.setdefault("learning_rate" if name.startswith("learning_rate") else name, []).append(name)
    plt.rcParams["svg.hashsalt"] = "report"  # equal data, equal bytes
    plt.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(
        1, max(1, len(groups)), figsize=(3.2 * len(groups), 2.4), squeeze=False, layout="constrained"
    )
    for axis, (title, names) in zip(axes[0], groups.items(), strict=False):
        for name in names:
            steps, values = tables[name]
            axis.plot(steps, values, linewidth=1)
        axis.set_title(title.replace("_", " "), fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(visible=True, alpha=0.3)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def read_table(path: Path) -> tuple[list[int], list[float]]:
    """Read a table of step and value."""
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return [int(step) for step, _ in rows], [float(value) for _, value in rows]
