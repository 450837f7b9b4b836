"""Stage report: writes reports/index.html (one file, opens offline), reports/README.md, reports/curves, reports/cards.

python -m pipeline.stages report
"""

import shutil

from pipeline import artifacts, params
from pipeline.history.mlflow_report import send_report
from pipeline.pages.cards import write_cards
from pipeline.pages.changes import compare_commit, compare_runs
from pipeline.pages.charts import draw_curves, gather_curves, make_bars, make_plane, pick_color
from pipeline.pages.components import make_environment
from pipeline.pages.results import make_pages, make_tables


def main() -> None:
    """Write both reports, the curves that the second one shows, and the cards of runs and data."""
    settings = params.load()
    pages = make_pages(settings)
    runs, tables = list(settings.runs), make_tables(pages)
    folder = artifacts.REPORTS / "curves"
    shutil.rmtree(folder, ignore_errors=True)
    for made in (folder, artifacts.REPORTS / "cards"):  # DVC expects both, also of a project without runs
        made.mkdir(parents=True, exist_ok=True)
    for run in runs:
        drawn = draw_curves(artifacts.REPORTS / "runs" / run / "curves")
        artifacts.write_bytes(folder / f"{run}.svg", drawn.encode())
    shown = {
        "pages": pages,
        "carded": write_cards(artifacts.REPORTS / "cards", pages, settings),
        "tables": tables,
        "bars": {metric: make_bars(table, runs) for metric, table in tables.items()},
        "planes": [plane for table in tables.values() if (plane := make_plane(table, runs))],
        "curves": gather_curves(pages),
        "colors": {run: pick_color(runs, run) for run in runs},
        "grids": compare_runs(pages, settings),
        "since": compare_commit(pages),
    }
    environment = make_environment(lambda run: f"#{run}")
    for template, target in (("report.html", "index.html"), ("report.md", "README.md")):
        text = environment.get_template(template).render(shown)
        artifacts.write_bytes(artifacts.REPORTS / target, (text.strip() + "\n").encode())
    send_report(artifacts.REPORTS / "index.html", runs)
    print(f"report of {len(pages)} runs: {artifacts.REPORTS / 'index.html'}")
