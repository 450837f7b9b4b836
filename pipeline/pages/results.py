"""Reads what the stages left of each run, and says it in words: numbers, intervals, floors, previews, verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import artifacts
from pipeline.evidence.protocol import find_refusals, format_refusals, read_protocol
from pipeline.evidence.uncertainty import format_interval, format_number, summarize
from pipeline.evidence.values import (
    REAL,
    Role,
    Values,
    find_companion,
    find_flaw,
    find_interval,
    find_value,
    list_overs,
    load_values,
    sort_names,
)
from pipeline.pages.exhibits import Shown, read_exhibit, show_exhibit, show_together
from pipeline.params import Params, Run

MOST_FRAMES = 3 * 2**20  # bytes of the previews in one report, over all runs


class Frame(NamedTuple):
    """A preview of a training."""

    step: int
    shown: Shown


@dataclass(frozen=True)
class Page:
    """What is shown of one run: its settings, metrics, the values of each set of samples, its record.

    values: what the metric declares of its values.
    content: of the run's protocol.json.
    about: the record's run.json; empty where git has the numbers, and DVC's cache no record.
    frames: previews by training step. exhibits: of the finished model.
    verdicts: of the stage `audit`; None if it did not run.
    """

    name: str
    run: Run
    source: str
    values: Values
    metrics: dict[str, float]
    sets: dict[str, list[float]]
    content: dict[str, Any]
    about: dict[str, Any]
    frames: list[Frame]
    exhibits: list[Shown]
    verdicts: dict[str, Any] | None

    @property
    def model(self) -> str:
        """The model's name."""
        return self.run.model

    @property
    def data(self) -> str:
        """The data set and its source."""
        return f"{self.run.data}: {self.source}"

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.run.seed

    def total(self, name: str) -> str:
        """Return what the training took: seconds, CPU seconds, peak memory, parameters."""
        return format_number(round(self.about["totals"][name])) if self.about else ""

    @property
    def alarm(self) -> str:
        """What went wrong in the training though it finished, or could not be judged; empty if nothing."""
        tags = self.about.get("tags", {})
        return "; ".join(str(tags[key]) for key in ("alarm", "alarm.silent") if key in tags)

    @property
    def samples(self) -> list[Shown]:
        """The exhibits that show samples."""
        return [each for each in self.exhibits if each.name == "samples"]

    @property
    def others(self) -> list[Shown]:
        """All other exhibits."""
        return [each for each in self.exhibits if each.name != "samples"]

    @property
    def headlines(self) -> list[str]:
        """The measurements that tables show first, and of which lower or higher values are better."""
        named = [(name, find_value(self.values, name)) for name in sort_names(self.values, self.metrics)]
        directed = [(name, value) for name, value in named if value.direction != "none"]
        return [name for name, value in directed if value.headline] or [name for name, _ in directed]

    @property
    def copies(self) -> str:
        """What the audit says, in words."""
        if self.verdicts is None:
            return "not audited"
        parts = []
        if found := self.verdicts.get("copies"):
            parts.append(f"{found['verdict']} of training data: {found['reason']}")
            if (ratio := found.get("distance_ratio")) is not None:
                parts.append(f"samples lie {ratio:.2f} times as far from training data as test data do")
        if "secrets" in self.verdicts:
            secrets = self.verdicts["secrets"]
            known = sum(each["verdict"] == "memorised" for each in secrets)
            parts.append(
                f"{known} of {len(secrets)} secrets memorised" if secrets else "no secret in the training text"
            )
        return "; ".join(parts) or "nothing to compare with: no feature network, no text"

    def interval(self, name: str) -> tuple[float, float]:
        """Return the 95 % interval of a metric; not a number if there is none."""
        return find_interval(self.values, name, {"metrics": self.metrics, "sets": self.sets})

    def real(self, name: str) -> float | None:
        """Return the value of real data next to a metric."""
        found = (self.metrics.get(find_companion(self.values, name, role)) for role in REAL)
        return next((value for value in found if value is not None), None)

    def direction(self, name: str) -> str:
        """Return which values of a metric are better: lower, higher, or none."""
        return find_value(self.values, name).direction

    def say(self, name: str) -> str:
        """Return a metric as text."""
        return format_number(self.metrics[name])

    def sentence(self, name: str) -> str:
        """Return a metric, its interval, its direction and real data in words."""
        low, _ = self.interval(name)
        interval = "" if math.isnan(low) else f", with 95 % confidence {self.say_range(name)}"
        real = self.say_real(name)
        compared = "" if real == "none" else f"; real data have {real}"
        return f"{name} is {self.say(name)}{interval}; {self.direction(name)} is better{compared}."

    def say_range(self, name: str) -> str:
        """Return the interval in words."""
        low, high = self.interval(name)
        return "none" if math.isnan(low) else f"{format_number(low)} to {format_number(high)}"

    def say_real(self, name: str) -> str:
        """Return the value of real data as text."""
        value = self.real(name)
        return "none" if value is None else format_number(value)

    def cell(self, name: str) -> str:
        """Return a metric with the values next to it: 8.91 [8.7, 9.1] (floor 0.92), 95.2 +- 0.7."""
        if name not in self.metrics:
            return ""
        parts = [format_number(self.metrics[name])]
        if name in self.sets:
            found = summarize([self.sets[name]])
            parts.append(format_interval(found.low, found.high, found.reason))
        if error := self.beside(name, "error"):
            parts.append(f"\u00b1 {error}")
        parts += [f"({role} {text})" for role in REAL if (text := self.beside(name, role))]
        if flaw := find_flaw(self.values, self.metrics, name):
            parts.append(f"({flaw})")
        return " ".join(parts)

    def beside(self, name: str, role: Role) -> str:
        """Return the value next to a metric in a role as text; empty if there is none."""
        companion = find_companion(self.values, name, role)
        return format_number(self.metrics[companion]) if companion in self.metrics else ""


@dataclass(frozen=True)
class Table:
    """The runs that one metric has evaluated."""

    values: Values
    pages: list[Page]

    @property
    def names(self) -> list[str]:
        """The metrics of all runs, without those that stand next to another one."""
        return sort_names(self.values, [name for page in self.pages for name in page.metrics])

    def errors(self) -> str:
        """Return the things that the standard errors are over; empty without a standard error."""
        return ", or ".join(list_overs(self.values, [name for page in self.pages for name in page.metrics], "error"))

    def intervals(self) -> str:
        """Return the things that the intervals in brackets are over; empty without an interval."""
        return ", or ".join(list_overs(self.values, [name for page in self.pages for name in page.sets], "measurement"))

    def list_directed(self, direction: str) -> str:
        """Return the metrics of which lower, or higher, values are better."""
        return ", ".join(name for name in self.names if find_value(self.values, name).direction == direction)

    def list_refusals(self) -> list[str]:
        """Return a line for each reason why values of a row are not comparable."""
        return format_refusals(find_refusals(self.names, {page.name: page.content for page in self.pages}))

    def unit(self, name: str) -> str:
        """Return a metric's unit."""
        return find_value(self.values, name).unit


def make_tables(pages: Sequence[Page]) -> dict[str, Table]:
    """Return a table for each metric."""
    metrics = dict.fromkeys(page.run.metric for page in pages)
    return {name: Table(load_values(name), [page for page in pages if page.run.metric == name]) for name in metrics}


def make_pages(settings: Params) -> list[Page]:
    """Read every run of params.yaml."""
    return [make_page(name, settings) for name in settings.runs]


def make_page(name: str, settings: Params) -> Page:
    """Read what the stages left of a run."""
    run = settings.runs[name]
    folder, record = artifacts.REPORTS / "runs" / name, artifacts.RUNS / name / "record"
    verdicts = folder / "audit" / "verdicts.json"
    about = record / "run.json"
    prompt = find_prompt(settings, run)
    # Samples come before reconstructions, and both before what the audit has drawn.
    paths = [*sorted((folder / "samples").glob("*"), reverse=True), *sorted((folder / "audit").glob("*"))]
    return Page(
        name=name,
        run=run,
        source=settings.data[run.data].source,
        values=load_values(run.metric),
        metrics=artifacts.read_json(folder / "metrics.json"),
        sets=artifacts.read_json(folder / "sets.json"),
        content=read_protocol(folder),
        about=artifacts.read_json(about) if about.exists() else {},
        frames=read_frames(record / "exhibits" / "samples", name, prompt, MOST_FRAMES // len(settings.runs)),
        exhibits=[show_exhibit(path, prompt) for path in paths if path != verdicts],
        verdicts=artifacts.read_json(verdicts) if verdicts.exists() else None,
    )


def find_prompt(settings: Params, run: Run) -> str:
    """Return the text that the run's samples continue; empty if they continue none."""
    return str(getattr(settings.metrics[run.metric].sampling, "prompt", ""))


def read_frames(folder: Path, run: str, prompt: str, most: int) -> list[Frame]:
    """Return the previews of a training by step: as many as `most` bytes hold, at even distances, with the last one."""
    steps: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        steps.setdefault(int(path.stem), []).append(path)
    size = sum(path.stat().st_size for paths in steps.values() for path in paths)
    count = min(len(steps), max(1, len(steps) * most // max(1, size)))
    known = list(steps)
    chosen = [known[len(known) - 1 - index * len(known) // count] for index in range(count)][::-1] if known else []
    frames = []
    for step in chosen:
        exhibits, place = [read_exhibit(path) for path in steps[step]], steps[step][0].as_posix()
        frames.append(Frame(step, show_together(exhibits, f"samples of {run} after {step:,} steps", place, prompt)))
    return frames
