"""Writes what MLflow shows in words: the descriptions of experiment and run, in Markdown, and the saved view of charts.

The view is a tag of the experiment, in the format of MLflow 3.17's button "Views": a name and a state, which says which
columns the table of runs has, and in which order the groups of charts come.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.evidence.uncertainty import format_number
from pipeline.evidence.values import find_value
from pipeline.history.mlflow_names import COST, INTERVALS, MORE, PICTURES, QUALITY, TRAIN, word_changes
from pipeline.history.results import Results
from pipeline.params import NONE

VIEW = "headlines"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
COLUMN = "tags.`headline`"  # the first one, and wide enough for a sentence
COLUMNS = (COLUMN, "params.`model`", "params.`changes`", "params.`seed`", "attributes.`Models`")
IN_SIGHT = 3  # headlines in the first line, which shows where the description is folded
MOST_ROWS = 30  # of the table of runs


class Group(NamedTuple):
    """A group of charts in the view: charts in a row, their height in pixels, whether it is unfolded."""

    columns: int = 3
    height: int = 300
    unfolded: bool = True


GROUPS = {
    QUALITY: Group(),
    PICTURES: Group(columns=1, height=480),  # so that those of several runs are next to each other
    TRAIN: Group(),
    COST: Group(),
    INTERVALS: Group(unfolded=False),
    MORE: Group(unfolded=False),
    "System metrics": Group(unfolded=False),
}
BARE = (f"{PICTURES}samples", f"{PICTURES}reconstructions", f"{TRAIN}samples")  # shown without 30 parameters each
WHERE = (
    f"Groups of charts: **{QUALITY[:-1]}** has the headlines, **{PICTURES[:-1]}** the final samples, **{TRAIN[:-1]}** "
    f"curves and previews, **{COST[:-1]}** seconds and memory. The view *Headlines* (button *Views*) shows them in "
    "this order. For the mean over seeds, choose *Group by* and the tag `configuration`."
)


class Row(NamedTuple):
    """A run in the experiment's table: its name, its id, its headline."""

    name: str
    run_id: str
    headline: str


def make_address(experiment: str, page: str) -> str:
    """Return the part of an address that leads MLflow's interface to a page of an experiment, in its mode for models.

    Without the mode the interface shows its pages for traces and prompts.
    """
    return f"#/experiments/{experiment}/{page}{'&' if '?' in page else '?'}workflowType=machine_learning"


def make_page_address(experiment: str) -> str:
    """Return the part of an address that leads to the charts of an experiment's runs, by the view of VIEW_TAG."""
    return make_address(experiment, f"runs?compareRunsMode=CHART&viewStateShareKey={VIEW}")


def describe_experiment(experiment: str, rows: Sequence[Row]) -> str:
    """Return the experiment's description: its runs with their headlines, and where to look."""
    first = " \u00b7 ".join(f"**{row.name}** {row.headline}" for row in rows[:IN_SIGHT])
    addresses = [make_address(experiment, f"runs/{row.run_id}") for row in rows]
    pairs = list(zip(rows, addresses, strict=True))[:MOST_ROWS]
    lines = [f"| [{row.name}]({address}) | {row.headline} |" for row, address in pairs]
    table = "\n".join(["| newest run | measured (95 % interval) |", "|---|---|", *lines])
    return f"{first}\n\n{table}\n\n{WHERE}"


def describe_run(about: Mapping[str, Any], results: Results | None) -> str:
    """Return a run's description: what it is, its headlines, how to use it, and the commands that repeat it."""
    return "\n\n".join(part for part in (_introduce(about), _tabulate(results), _show_use(about)) if part)


def find_headline(results: Results) -> str:
    """Return the first headline in words; empty if the metric declares none."""
    names = results.list_headlines()
    return f"{names[0]} {results.describe(names[0])}" if names else ""


def _introduce(about: Mapping[str, Any]) -> str:
    config = about["config"]
    run, model = config.get("run", {}), config.get("model", {})
    data = ", ".join(dict.fromkeys(entry["name"] for entry in about["datasets"]))
    text = f"**{about['name']}**: model `{run.get('model', about['name'])}`, data {data}"
    if "steps" in model:
        text += f", {model['steps']:,} steps"
    if "seed" in run:
        text += f", seed {run['seed']}"
    if run.get("changes"):
        text += f", with `{word_changes(run['changes'])}`"
    if run.get("start", NONE) != NONE:
        text += f", from the weights of `{run['start']}`"
    if weights := run.get("weights"):
        text += f", from the weights `{weights['sha256'][:12]}` of `{weights['address']}`"
    return f"{text}."


def _tabulate(results: Results | None) -> str:
    names = results.list_headlines() if results else []
    if results is None or not names:
        return ""
    lines = ["| measured | value (95 % interval) | better is |", "|---|---|---|"]
    for name in names:
        value = find_value(results.values, name)
        unit = f", {value.unit}" if value.unit else ""
        lines.append(f"| `{name}`{unit} | {results.describe(name)} | {value.direction} |")
    return "\n".join(lines)


def _show_use(about: Mapping[str, Any]) -> str:
    name, tags = about["name"], about["tags"]
    commit = tags.get("mlflow.source.git.commit", "")[:12]
    lines = ["Use its newest model:", "", f'    mlflow.pyfunc.load_model("models:/{name}@latest").predict([0, 1])', ""]
    if commit:
        dirty = ", with changes that were not committed" if tags.get("git.dirty") == "true" else ""
        lines += [f"Repeat it (commit `{commit}`{dirty}; all parameters are in the artifact config.json):", ""]
        lines += [f"    git checkout {commit} && dvc repro evaluate@{name}"]
    if totals := about.get("totals"):
        count = totals.get("kept_parameters")
        size = f"; the model has {format_number(count)} parameters" if count else ""
        lines += ["", f"The training took {totals['seconds']:,.0f} s and {totals['peak_memory_mib']:,.0f} MiB{size}."]
    return "\n".join(lines)


def make_view() -> str:
    """Return the value of the tag VIEW_TAG. MLflow adds the charts of all metrics to the groups that it names."""
    ids = {group: f"{VIEW}-{position}" for position, group in enumerate(GROUPS)}
    sections = [
        {
            "uuid": ids[name],
            "name": name.rstrip("/"),
            "columns": group.columns,
            "cardHeight": group.height,
            "display": group.unfolded,
            "isReordered": True,
            "deleted": False,
        }
        for name, group in GROUPS.items()
    ]
    charts = [
        {
            "uuid": f"{VIEW}-{key}",
            "type": "IMAGE",
            "imageKeys": [key],
            "step": 0,
            "showRunParams": False,
            "metricSectionId": ids[f"{key.partition('/')[0]}/"],
            "runsCountToCompare": 10,
            "deleted": False,
            "isGenerated": True,
        }
        for key in BARE
    ]
    state = {
        "selectedColumns": COLUMNS,
        "columnOrder": [COLUMN],
        "columnWidths": {COLUMN: 420},
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
    }
    return json.dumps({"name": VIEW.title(), "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})
