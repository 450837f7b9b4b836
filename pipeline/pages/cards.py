"""Writes a card for each trained model and each data set, as Hugging Face's Hub reads them: facts with their source.

Everything in a card comes from the run's record, the data set's manifest, the protocol and the audit. A fact that is
not known is said to be unknown, so that no field is empty.
"""

import ast
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from pipeline import artifacts, code, plugins
from pipeline.evidence.uncertainty import format_number
from pipeline.evidence.values import find_flaw, find_value, is_measurement, sort_names
from pipeline.pages.changes import flatten
from pipeline.pages.components import make_environment
from pipeline.pages.results import Page
from pipeline.params import Params


def write_cards(folder: Path, pages: Sequence[Page], settings: Params) -> set[str]:
    """Write <folder>/data/<data>.md of prepared data and <folder>/runs/<run>.md; return the runs that have a card.

    A run has none whose record, or data, are not in this folder: git has its numbers, and DVC's cache has no more.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prepared = [data for data in settings.data if (artifacts.PREPARED / data / "manifest.json").exists()]
    for data in prepared:
        artifacts.write_bytes(folder / "data" / f"{data}.md", make_data_card(data, settings).encode())
    recorded = [page for page in pages if page.about and page.run.data in prepared]
    for page in recorded:
        artifacts.write_bytes(folder / "runs" / f"{page.name}.md", make_model_card(page, settings).encode())
    return {page.name for page in recorded}


def make_model_card(page: Page, settings: Params) -> str:
    """Return the card of a run's model."""
    manifest = artifacts.read_manifest(page.run.data)
    names = [name for name in sort_names(page.values, page.metrics) if is_measurement(page.values, name)]
    results = [
        EvalResult(
            task_type=f"{manifest['kind']}-generation",
            dataset_type=page.source,
            dataset_name=page.data,
            dataset_split="test",
            metric_type=name,
            metric_name=name,
            metric_value=page.metrics[name],
        )
        for name in names
    ]
    metadata = ModelCardData(
        model_name=page.name,
        library_name="pytorch-lightning",
        tags=[page.model, manifest["kind"], "generative"],
        datasets=[page.source],
        metrics=names,
        eval_results=results,
    )
    body = fill(
        "cards.model.md",
        page=page,
        summary=read_summary("models", page.model),
        config=flatten(artifacts.encode(settings.models[page.name])),
        rows=[describe_value(page, name) for name in names],
        counts=describe_counts(manifest),
        network=describe_network(page),
        limits=list_limits(page, manifest),
        commit=page.about["tags"].get("mlflow.source.git.commit", "unknown: the folder was in no git repository"),
    )
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n{body}"))


def make_data_card(data: str, settings: Params) -> str:
    """Return the card of a data set."""
    config, manifest = settings.data[data], artifacts.read_manifest(data)
    kind = plugins.load("kinds", config.KIND)
    columns = list_splits(manifest)
    values = {name: flatten(entry) for name, entry in manifest["splits"].items()}
    rows = {key: [say(values[name].get(key)) for name in columns] for entry in values.values() for key in entry}
    metadata = DatasetCardData(pretty_name=f"{data}: {config.source}", tags=[manifest["kind"], config.source])
    body = fill(
        "cards.data.md",
        data=data,
        config=flatten(artifacts.encode(config)),
        summary=read_summary("data", config.source),
        description=read_docstring("data", config.source),
        fields={name: flatten(spec) for name, spec in manifest["fields"].items()},
        columns=columns,
        rows=rows,
        doubts=kind.question_data(data, manifest, config),
        facts={key: say(value) for key, value in flatten(manifest.get("known", {})).items() if key},
        manifest=manifest,
    )
    return str(DatasetCard(f"---\n{metadata.to_yaml()}\n---\n{body}"))


def fill(template: str, **values: Any) -> str:
    """Fill in a template."""
    environment = make_environment(str)
    environment.filters["say"] = say
    return environment.get_template(template).render(values)


def say(value: Any) -> str:
    """Return a value as text; a cell of a table is never empty."""
    if value is None:
        return "not counted"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return format_number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(say, value)) or "none"
    return str(value).replace("|", "\\|").replace("\n", " ") or "none"


def read_docstring(family: str, name: str) -> str:
    """Return the docstring of a plug-in."""
    path = code.find_file(plugins.find_module(family, name))
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "It has no description."


def read_summary(family: str, name: str) -> str:
    """Return the first paragraph of a plug-in's docstring as one line."""
    return " ".join(read_docstring(family, name).split("\n\n")[0].split())


def describe_value(page: Page, name: str) -> list[str]:
    """Return the row of a measurement: name, value, interval, real data, which is better, protocol."""
    value = find_value(page.values, name)
    flaw = find_flaw(page.values, page.metrics, name)
    low, _ = page.interval(name)
    return [
        name + (f" ({value.unit})" if value.unit else ""),
        page.say(name) + (f" ({flaw})" if flaw else ""),
        "none" if math.isnan(low) else page.say_range(name),
        page.say_real(name),
        value.direction,
        page.content["values"][name]["hash"],
    ]


def describe_counts(manifest: Mapping[str, Any]) -> str:
    """Return the examples, or else the tokens, of each split."""
    entries = {name: manifest["splits"][name] for name in list_splits(manifest)}
    counts = {name: entry["count"] if "count" in entry else entry["tokens"] for name, entry in entries.items()}
    return ", ".join(f"{count:,} in {name}" for name, count in counts.items())


def list_splits(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the splits, the training split first."""
    return [name for name in artifacts.SPLITS if name in manifest["splits"]]


def describe_network(page: Page) -> str:
    """Return the feature network that the metric looks through."""
    found = page.content["protocol"].get("network")
    return f"{found['name']}, weights {found['weights_sha256'][:12]}" if isinstance(found, dict) else "none"


def list_limits(page: Page, manifest: Mapping[str, Any]) -> list[str]:
    """Return what a user must know before relying on the model."""
    found = [
        "One training with one seed: another seed gives another model, and the intervals do not cover that choice.",
        f"It imitates its training data ({describe_counts(manifest)}), with their gaps and errors.",
        f"Alarms of the training: {page.alarm or 'none'}.",
    ]
    if page.about["tags"].get("git.dirty") == "true":
        found.append(
            "The folder had uncommitted changes when it was trained: the commit by itself may not reproduce it."
        )
    return found
