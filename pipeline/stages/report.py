"""Stage report: writes reports/index.html (one file, opens offline) and reports/README.md from all runs.

python -m pipeline.stages.report
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, select_autoescape

from pipeline import artifacts, params
from pipeline.stages import run_stage

mpl.use("svg")
from matplotlib import pyplot as plt

ASIDE = ("_floor", "_real", "_se")  # suffixes of values that stand beside another one


@dataclass(frozen=True)
class Page:
    """What the report shows of one run."""

    name: str
    model: str
    data: str
    metric: str
    seed: int
    metrics: dict[str, float]
    about: dict[str, Any]
    folder: Path

    @property
    def totals(self) -> dict[str, float]:
        """Seconds, CPU seconds, peak memory, parameters."""
        totals: dict[str, float] = self.about["totals"]
        return totals

    def cell(self, name: str) -> str:
        """Return a metric with what stands beside it: 8.91 (floor 0.92), 95.2 +- 0.7."""
        if name not in self.metrics:
            return ""
        text = show(self.metrics[name])
        if f"{name}_se" in self.metrics:
            text += f" \u00b1 {show(self.metrics[f'{name}_se'])}"
        for kind in ("floor", "real"):
            if f"{name}_{kind}" in self.metrics:
                text += f" ({kind} {show(self.metrics[f'{name}_{kind}'])})"
        return text

    def picture(self, name: str) -> str:
        """Return a PNG of the run as a data address, empty without the file."""
        path = self.folder / name
        if not path.exists():
            return ""
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

    def text(self) -> str:
        """Return the written samples."""
        path = self.folder / "samples.txt"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def curves(self) -> str:
        """Return all recorded values over the steps as one SVG."""
        return draw_curves(self.folder / "curves")


def main() -> None:
    """Write both reports."""
    settings = params.load()
    pages = [
        Page(
            name=name,
            model=run.model,
            data=f"{run.data}: {settings.data[run.data].model_dump()['source']}",
            metric=run.metric,
            seed=run.seed,
            metrics=artifacts.read_json(artifacts.REPORTS / "runs" / name / "metrics.json"),
            about=artifacts.read_json(artifacts.RUNS / name / "record" / "run.json"),
            folder=artifacts.REPORTS / "runs" / name,
        )
        for name, run in settings.runs.items()
    ]
    tables = {
        metric: sorted_names([page for page in pages if page.metric == metric])
        for metric in dict.fromkeys(page.metric for page in pages)
    }
    environment = Environment(
        loader=PackageLoader("pipeline", "stages"), autoescape=select_autoescape(["html"]), trim_blocks=True
    )
    for template, target in (("report.html", "index.html"), ("report.md", "README.md")):
        text = environment.get_template(template).render(pages=pages, tables=tables, show=show)
        (artifacts.REPORTS / target).write_text(text.rstrip() + "\n", encoding="utf-8")
    print(f"report of {len(pages)} runs: {artifacts.REPORTS / 'index.html'}")


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


def show(value: float) -> str:
    """Return a number with four significant digits, counts in full."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


def draw_curves(folder: Path) -> str:
    """Draw each table of <folder>/*.tsv over its steps; learning rates share one plot."""
    tables = {path.stem: read_table(path) for path in sorted(folder.glob("*.tsv"))}
    groups: dict[str, list[str]] = {}
    for name in tables:
        groups.setdefault("learning_rate" if name.startswith("learning_rate") else name, []).append(name)
    if not groups:
        return ""
    plt.rcParams["svg.hashsalt"] = "report"  # equal data, equal bytes
    plt.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(1, len(groups), figsize=(3.2 * len(groups), 2.4), squeeze=False, layout="constrained")
    for axis, (title, names) in zip(axes[0], groups.items(), strict=True):
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
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [int(step) for step, _ in rows], [float(value) for _, value in rows]


if __name__ == "__main__":
    run_stage(main)
