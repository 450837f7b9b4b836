"""Reads params.yaml once (YAML 1.2) into typed, frozen, checked configs.

    python -m pipeline.params       # check params.yaml and print the resolved runs

The stages load and check the whole file before they do anything, so that a typing error in the last section stops the
first stage, `check`. `fetch` and `prepare` come after it and load their own section alone: the others' plug-ins take
hundreds of megabytes of memory. Messages name the key in full, what was expected and what came.
"""

import difflib
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import plugins

PATH = Path("params.yaml")


class ParamsError(ValueError):
    """params.yaml is not usable; the message says which keys and why."""


class Section(BaseModel):
    """Base of every config: unknown keys, missing keys and wrong types are refused; values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Run(Section):
    """One experiment: what to train, on what, measured how."""

    model: str = Field(description="section of models, a file in pipeline/models/")
    data: str = Field(description="section of data")
    metric: str = Field(description="section of metrics, a file in pipeline/metrics/")
    features: list[str] = Field(description="sections of features that FID, KID, precision, recall use")
    seed: int = Field(ge=0, description="seed of weights, data order, noise and samples")
    set: dict[str, Any] = Field(description="keys of the model's section that this run changes")


class Params(Section):
    """All of params.yaml; `models` holds each run's model config with the run's own changes applied."""

    data: dict[str, Section]
    features: dict[str, Section]
    models: dict[str, Section]
    metrics: dict[str, Section]
    runs: dict[str, Run]


def load(path: Path = PATH) -> Params:
    """Read and check a params file.

    Raises:
        ParamsError: with one line for each key that is unknown, missing, of the wrong type or out of range.
    """
    raw = read_mapping(path, SECTIONS_SAID, FOLDER)
    problems = [f"{key}: unknown section{_nearest(str(key), Params.model_fields)}" for key in raw.keys() - SECTIONS]
    problems += [f"{key}: missing section" for key in SECTIONS if not isinstance(raw.get(key), dict)]
    if problems:
        raise _error(path, problems)
    runs: dict[str, Run] = {}
    for name, values in raw["runs"].items():
        run = check_section(Run, values, f"runs.{name}", problems)
        if isinstance(run, Run):
            runs[name] = run
            _check_links(name, run, raw, problems)
    checked: dict[str, dict[str, Section]] = {}
    for section, family, key in (("data", "data", "source"), ("features", "models", "network")):
        checked[section] = {
            name: _plug_in(family, key, f"{section}.{name}", values, problems) for name, values in raw[section].items()
        }
    for section in ("models", "metrics"):
        checked[section] = {
            name: _plug_in(section, None, f"{section}.{name}", values, problems)
            for name, values in raw[section].items()
        }
    _check_features(raw, checked["data"], problems)
    models = {
        name: _plug_in("models", None, f"runs.{name}.set", {**raw["models"][run.model], **run.set}, problems, run.model)
        for name, run in runs.items()
        if not problems
    }
    for name, run in runs.items():
        problems += [] if problems else _check_kinds(name, run, checked["data"][run.data])
    if problems:
        raise _error(path, problems)
    return Params.model_construct(
        data=checked["data"], features=checked["features"], models=models, metrics=checked["metrics"], runs=runs
    )


def load_data(key: str, path: Path = PATH) -> Section:
    """Read and check the section data.<key> alone, importing no plug-in but its source.

    Raises:
        ParamsError: as `load`, for this section.
        KeyError: if there is no such section.
    """
    sections = read_mapping(path, SECTIONS_SAID, FOLDER).get("data")
    if not isinstance(sections, dict):
        raise _error(path, ["data: missing section"])
    problems: list[str] = []
    config = _plug_in("data", "source", f"data.{key}", sections[key], problems)
    if problems:
        raise _error(path, problems)
    return config


SECTIONS = tuple(Params.model_fields)
SECTIONS_SAID, FOLDER = f"a mapping with the sections {', '.join(SECTIONS)}", "the project's folder"


def read_mapping(path: Path, expected: str, folder: str) -> dict[str, Any]:
    """Read a YAML file that is a mapping.

    Args:
        path: the file.
        expected: what it should be, for the message.
        folder: where it lies, for the message.

    Raises:
        ParamsError: if it is missing, no YAML, or no mapping.
    """
    if not path.exists():
        msg = f"{path.resolve()}: not found; run from {folder}"
        raise ParamsError(msg)
    try:
        raw = YAML(typ="safe", pure=True).load(path)
    except YAMLError as error:
        msg = f"{path}: not valid YAML: {error}"
        raise ParamsError(msg) from error
    if not isinstance(raw, dict):
        msg = f"{path}: expected {expected}, got {raw!r}"
        raise ParamsError(msg)
    return raw


def _check_links(name: str, run: Run, raw: dict[str, Any], problems: list[str]) -> None:
    links = [("model", "models", run.model), ("data", "data", run.data), ("metric", "metrics", run.metric)]
    links += [("features", "features", feature) for feature in run.features]
    for key, section, target in links:
        if target not in raw[section]:
            problem = f"runs.{name}.{key}: no section {section}.{target}{_nearest(target, raw[section])}"
            if key in {"model", "metric"}:
                problem += f"; pipeline/{section}/ has {', '.join(plugins.names(section))}"
            problems.append(problem)


def _check_kinds(name: str, run: Run, data: Any) -> list[str]:
    """Return what does not fit: the kinds of data, model and metric, and feature networks, which are for images."""
    model, metric = (
        plugins.load(family, plug_in) for family, plug_in in (("models", run.model), ("metrics", run.metric))
    )
    if run.features and metric.KIND != "images":
        message = f"feature networks are for images, metric {run.metric} measures {metric.KIND}: expected []"
        return [f"runs.{name}.features: {message}, got {run.features}"]
    if not run.features and getattr(metric, "CHANNELWISE", False):
        return [f"runs.{name}.features: metric {run.metric} labels channels by a network, expected one or more, got []"]
    if data.KIND in model.KINDS and data.KIND == metric.KIND:
        return []
    kinds = f"data {run.data} ({data.source}) holds {data.KIND}, model {run.model} learns {' or '.join(model.KINDS)}"
    return [f"runs.{name}: {kinds}, metric {run.metric} measures {metric.KIND}"]


def _check_features(raw: dict[str, Any], data: dict[str, Section], problems: list[str]) -> None:
    for name, values in raw["features"].items():
        target = values.get("data") if isinstance(values, dict) else None
        if not isinstance(target, str):
            continue
        if target not in raw["data"]:
            problems.append(f"features.{name}.data: no section data.{target}{_nearest(target, raw['data'])}")
        elif (kind := getattr(data[target], "KIND", "images")) != "images":
            problems.append(f"features.{name}.data: expected images, data.{target} holds {kind}")


def _plug_in(
    family: str, key: str | None, name: str, values: object, problems: list[str], plug_in: str | None = None
) -> Section:
    """Check one section against the Config of its plug-in: named by `key`, by `plug_in`, or by the section itself."""
    if key is not None:
        if not isinstance(values, dict) or key not in values:
            problems.append(_describe_absence(name, key, values))
            return Section()
        plug_in = str(values[key])
    try:
        module = plugins.load(family, plug_in or name.split(".")[1])
    except ValueError as error:
        problems.append(f"{name}{'.' + key if key else ''}: {error}")
        return Section()
    if key == "network" and not hasattr(module, "load_features"):
        networks = [known for known in plugins.names(family) if hasattr(plugins.load(family, known), "load_features")]
        problems.append(f"{name}.{key}: expected a feature network, {' or '.join(networks)}, got {plug_in!r}")
        return Section()
    return check_section(module.Config, values, name, problems)


def _describe_absence(name: str, key: str, values: object) -> str:
    """Say why a section does not name its plug-in: it is no mapping, or the key is missing or mistyped."""
    if not isinstance(values, dict):
        return f"{name}: no mapping, got {values!r}"
    close = difflib.get_close_matches(key, map(str, values), n=1)
    return f"{name}.{close[0]}: unknown key, did you mean {key!r}?" if close else f"{name}.{key}: missing key"


def check_section(config: type[Section], values: object, name: str, problems: list[str]) -> Section:
    """Return the section `name`, checked; what is wrong with it is added to `problems`, a line each."""
    try:
        return config.model_validate(values)
    except ValidationError as error:
        problems.extend(_describe(config, name, item) for item in error.errors())
        return Section()


def _describe(config: type[BaseModel], name: str, item: Any) -> str:
    """Turn one pydantic error into 'runs.gan.sed: unknown key, did you mean seed?'."""
    where = ".".join([name, *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        for part in item["loc"][:-1]:
            inner = config.model_fields[str(part)].annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                config = inner
        return f"{where}: unknown key{_nearest(str(item['loc'][-1]), config.model_fields)}"
    if item["type"] == "missing":
        return f"{where}: missing key"
    message = item["msg"].removeprefix("Value error, ")
    came = "" if item["type"] == "value_error" and isinstance(item["input"], dict) else f", got {item['input']!r}"
    return f"{where}: {message[0].lower()}{message[1:]}{came}"


def _nearest(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _error(path: Path, problems: list[str]) -> ParamsError:
    return ParamsError("\n  ".join([f"{path} is not usable:", *sorted(set(problems))]))


if __name__ == "__main__":
    try:
        params = load()
    except ParamsError as problem:
        sys.exit(f"error: {problem}")
    for run_name, run_config in params.runs.items():
        resolved = {**run_config.model_dump(), "set": params.models[run_name].model_dump()}
        print(run_name, json.dumps(resolved))
