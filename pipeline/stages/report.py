"""Stage report: writes reports/index.html (one file, opens offline), reports/README.md and reports/curves.

python -m pipeline.stages.report
"""

import base64
import csv
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, select_autoescape
from ruamel.yaml import YAML

from pipeline import artifacts, params, plugins
from pipeline.evidence.uncertainty import show, summarize
from pipeline.params import Run
from pipeline.stages import run_stage

mpl.use("svg")
from matplotlib import pyplot as plt

ASIDE = ("_floor", "_real", "_se")  # suffixes of values that stand beside another one


@dataclass(frozen=True)
class Page:
    """What the report shows of one run: its settings, metrics, the values of each set of samples, its record.

    about: the record's run.json; empty where git has the numbers, and DVC's cache no record.
    """

    name: str
    model: str
    data: str
    metric: str
    seed: int
    metrics: dict[str, float]
    sets: dict[str, list[float]]
    about: dict[str, Any]
    curves: str
    samples: Path

    def total(self, name: str) -> str:
        """Return what the training took: seconds, CPU seconds, peak memory, parameters."""
        return show(round(self.about["totals"][name])) if self.about else ""

    @property
    def alarm(self) -> str:
        """What went wrong in the training though it finished; empty if nothing."""
        return str(self.about["tags"].get("alarm", "")) if self.about else ""

    def cell(self, name: str) -> str:
        """Return a metric with what stands beside it: 8.91 [8.7, 9.1] (floor 0.92), 95.2 +- 0.7."""
        if name not in self.metrics:
            return ""
        text = show(self.metrics[name])
        if name in self.sets:
            found = summarize([self.sets[name]])
            text += f" [{show(found.low)}, {show(found.high)}]"
        if f"{name}_se" in self.metrics:
            text += f" \u00b1 {show(self.metrics[f'{name}_se'])}"
        for kind in ("floor", "real"):
            if f"{name}_{kind}" in self.metrics:
                text += f" ({kind} {show(self.metrics[f'{name}_{kind}'])})"
        return text

    def has(self, name: str) -> bool:
        """Say whether the run has a picture of this name."""
        return (self.samples / name).exists()

    def picture(self, name: str) -> str:
        """Return a PNG of the run as a data address."""
        return "data:image/png;base64," + base64.b64encode((self.samples / name).read_bytes()).decode()

    def text(self) -> str:
        """Return the written samples."""
        path = self.samples / "samples.yaml"
        texts = YAML(typ="safe", pure=True).load(path) if path.exists() else []
        return "\n\n----\n\n".join(text.strip("\n") for text in texts)


def main() -> None:
    """Write both reports, and the curves that the second one shows."""
    settings = params.load()
    pages = [
        make_page(name, run, settings.data[run.data].model_dump()["source"]) for name, run in settings.runs.items()
    ]
    tables = {
        metric: sorted_names([page for page in pages if page.metric == metric])
        for metric in dict.fromkeys(page.metric for page in pages)
    }
    errors = {metric: plugins.load("metrics", metric).ERRORS for metric in tables}
    folder = artifacts.REPORTS / "curves"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for page in pages:
        (folder / f"{page.name}.svg").write_text(page.curves, encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("pipeline", "stages"), autoescape=select_autoescape(["html"]), trim_blocks=True
    )
    for template, target in (("report.html", "index.html"), ("report.md", "README.md")):
        text = environment.get_template(template).render(pages=pages, tables=tables, errors=errors, show=show)
        (artifacts.REPORTS / target).write_text(text.rstrip() + "\n", encoding="utf-8")
    print(f"report of {len(pages)} runs: {artifacts.REPORTS / 'index.html'}")


def make_page(name: str, run: Run, source: str) -> Page:
    """Read what the stages left of a run."""
    folder, record = artifacts.REPORTS / "runs" / name, artifacts.RUNS / name / "record" / "run.json"
    return Page(
        name=name,
        model=run.model,
        data=f"{run.data}: {source}",
        metric=run.metric,
        seed=run.seed,
        metrics=artifacts.read_json(folder / "metrics.json"),
        sets=artifacts.read_json(folder / "sets.json"),
        about=artifacts.read_json(record) if record.exists() else {},
        curves=draw_curves(folder / "curves"),
        samples=folder / "samples",
    )


def sorted_names(pages: list[Page]) -> list[str]:
    """Return the metrics of a table in the order of their first appearance, without those shown beside another."""
    names = dict.fromkeys(name for page in pages for name in page.metrics)
    order = sorted(names, key=lambda name: (name not in {"samples", *HEADLINES}, HEADLINES.get(name, 99)))
    return [name for name in order if not name.endswith(ASIDE) and "_std_" not in name]


HEADLINES = {
    name: position
    for position, name in enumerate(
        [
            "samples",
            "fid_classifier",
            "fid_classifier_ratio",
            "precision_classifier",
            "recall_classifier",
            "iw500_nats",
            "elbo_nats",
            "test_bits_per_character",
            "test_nats",
            "test_perplexity",
        ]
    )
}


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


if __name__ == "__main__":
    run_stage(main)
