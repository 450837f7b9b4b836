"""Stage report: writes reports/index.html (one file, opens offline), reports/README.md and reports/curves.

python -m pipeline.stages report
"""

import base64
import csv
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from ruamel.yaml import YAML

from pipeline import artifacts, params
from pipeline.evidence.protocol import check_content, find_refusals, format_refusals
from pipeline.evidence.uncertainty import format_interval, format_number, summarize
from pipeline.evidence.values import (
    Role,
    Values,
    find_companion,
    find_flaw,
    find_value,
    list_overs,
    load_values,
    sort_names,
)
from pipeline.history.mlflow_report import send_report
from pipeline.params import Run

mpl.use("svg")
from matplotlib import pyplot as plt

REAL: tuple[Role, ...] = ("floor", "real")  # roles of values of real data


@dataclass(frozen=True)
class Shown:
    """An exhibit of a run in both reports."""

    name: str
    html: Markup
    markdown: str


@dataclass(frozen=True)
class Page:
    """What the report shows of one run: its settings, metrics, the values of each set of samples, its record.

    values: what the metric declares of its values.
    content: of the run's protocol.json.
    about: the record's run.json; empty where git has the numbers, and DVC's cache no record.
    """

    name: str
    model: str
    data: str
    metric: str
    seed: int
    values: Values
    metrics: dict[str, float]
    sets: dict[str, list[float]]
    content: dict[str, Any]
    about: dict[str, Any]
    curves: str
    exhibits: list[Shown]

    def total(self, name: str) -> str:
        """Return what the training took: seconds, CPU seconds, peak memory, parameters."""
        return format_number(round(self.about["totals"][name])) if self.about else ""

    @property
    def alarm(self) -> str:
        """What went wrong in the training though it finished, or could not be judged; empty if nothing."""
        tags = self.about.get("tags", {})
        return "; ".join(str(tags[key]) for key in ("alarm", "alarm.silent") if key in tags)

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


def show_exhibit(path: Path) -> Shown:
    """Show a file of reports/runs/<run>/samples by its suffix; a file of an unknown kind is a link."""
    place = path.relative_to(artifacts.REPORTS).as_posix()
    title = f"{path.stem} of {path.parents[1].name}"
    if path.suffix in TEXTS:
        text = TEXTS[path.suffix](path.read_text(encoding="utf-8"))
        return Shown(title, Markup("<pre>{}</pre>").format(text), indent(text, "    ", lambda _: True))
    if path.suffix in MEDIA:
        kind, element = MEDIA[path.suffix]
        address = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        mark = "!" if kind.startswith("image/") else ""  # Markdown embeds pictures only
        return Shown(title, element.format(address, title), f"{mark}[{title}]({place})")
    return Shown(title, Markup('<a href="{}">{}</a>').format(place, path.name), f"[{path.name}]({place})")


def join_texts(content: str) -> str:
    """Return the texts of a YAML list, with a line between them."""
    return "\n\n----\n\n".join(text.strip("\n") for text in YAML(typ="safe", pure=True).load(content))


MEDIA = {  # by suffix: the media type, and the element that shows an address with a title
    ".png": ("image/png", Markup('<img src="{}" alt="{}">')),
    ".wav": ("audio/wav", Markup('<audio controls src="{}" title="{}"></audio>')),
}
TEXTS: dict[str, Callable[[str], str]] = {".txt": str, ".yaml": join_texts}


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


def main() -> None:
    """Write both reports, and the curves that the second one shows."""
    settings = params.load()
    pages = [make_page(name, run, settings.data[run.data].source) for name, run in settings.runs.items()]
    tables = {
        metric: Table(load_values(metric), [page for page in pages if page.metric == metric])
        for metric in dict.fromkeys(page.metric for page in pages)
    }
    folder = artifacts.REPORTS / "curves"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for page in pages:
        (folder / f"{page.name}.svg").write_text(page.curves, encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("pipeline", "stages"), autoescape=select_autoescape(["html"]), trim_blocks=True
    )
    for template, target in (("report.html", "index.html"), ("report.md", "README.md")):
        text = environment.get_template(template).render(pages=pages, tables=tables)
        (artifacts.REPORTS / target).write_text(text.rstrip() + "\n", encoding="utf-8")
    send_report(artifacts.REPORTS / "index.html", [page.name for page in pages])
    print(f"report of {len(pages)} runs: {artifacts.REPORTS / 'index.html'}")


def make_page(name: str, run: Run, source: str) -> Page:
    """Read what the stages left of a run."""
    folder, record = artifacts.REPORTS / "runs" / name, artifacts.RUNS / name / "record" / "run.json"
    return Page(
        name=name,
        model=run.model,
        data=f"{run.data}: {source}",
        metric=run.metric,
        values=load_values(run.metric),
        seed=run.seed,
        metrics=artifacts.read_json(folder / "metrics.json"),
        sets=artifacts.read_json(folder / "sets.json"),
        content=check_content(artifacts.read_json(folder / "protocol.json"), f"{folder / 'protocol.json'}"),
        about=artifacts.read_json(record) if record.exists() else {},
        curves=draw_curves(folder / "curves"),
        # Samples come before reconstructions.
        exhibits=[show_exhibit(path) for path in sorted((folder / "samples").glob("*"), reverse=True)],
    )


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
