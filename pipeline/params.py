"""Reads params.yaml once (YAML 1.2) into typed, frozen, checked configs.

    python -m pipeline.params       # check params.yaml and print the resolved runs

The stages load and check the whole file before they do anything, so that a typing error in the last section stops the
first stage, `check`. `fetch` and `prepare` come after it and load only their own section: other plug-ins take
hundreds of megabytes of memory. Messages name the key in full, what was expected and what came.
"""

import contextlib
import copy
import difflib
import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from pipeline import plugins
from pipeline.artifacts import RAW

PATH = Path("params.yaml")
# Bounds of a YAML file. A thousand runs have 100,000 bytes; the reader needs a kilobyte for each of them.
MAX_BYTES, MAX_DEPTH, MAX_VALUES = 1 << 18, 32, 100_000
MAX_SAID = 200  # characters of a value that a message quotes
NONE = "none"  # in a run: no start, or no feature network
# A key is a folder, a word of the shell, a part of a dotted key of DVC, and a name in MLflow.
NAME = re.compile("[a-z][a-z0-9_-]{0,63}")
RESERVED = {
    NONE,
    *("null", "true", "false", "yes", "no", "on", "off", "y", "n"),  # no texts in one YAML or another
    *("con", "prn", "aux", "nul", *(f"{device}{number}" for device in ("com", "lpt") for number in range(10))),
}


class ParamsError(ValueError):
    """params.yaml is not usable; the message says which keys and why."""


class Section(BaseModel):
    """Base of every config: unknown keys, missing keys and wrong types are refused; values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Source(Section):
    """Base of every data section: which plug-in fetches and prepares it, and the kind of data that comes out."""

    KIND: ClassVar[str]
    READS_PATH: ClassVar[bool] = False  # whether `path` is your own files; most sources ignore it

    source: str = Field(description="a file in pipeline/data/")
    path: str = Field(
        min_length=1, description="your own files, for sources that read them; the other sources ignore it"
    )


class Network(Section):
    """Base of every network section: a feature network that metrics compare samples by."""

    network: str = Field(description="a file in pipeline/networks/")
    data: str = Field(description="section of data that the network learns, or is used on")
    probe: list[Annotated[int, Field(ge=1)]] = Field(
        default=[],
        exclude_if=lambda counts: not counts,
        description="labels per class that a linear probe on the features learns from; none: no probe",
    )


class Trainable(Section):
    """Base of every section that is trained: the keys that the training loop reads."""

    steps: int = Field(ge=0, description="optimizer steps; 0 keeps the weights of a start as they are")
    batch_size: int = Field(ge=1, description="examples per step, over all processes")
    clip_norm: float | None = Field(
        default=None, gt=0, exclude_if=lambda norm: norm is None, description="largest global norm of the gradient"
    )
    ema: float = Field(ge=0, lt=1, description="decay of the averaged weights that are kept; 0 keeps the last weights")


class Measure(Section):
    """Base of every metric section: what the stage `sample` draws, and how it is measured."""

    sampling: Section


class Weights(Section):
    """Weights from outside of this project: where they are, and which they are."""

    address: str = Field(
        min_length=1, description="models:/..., runs:/..., the folder of a model or a run, or a .safetensors file"
    )
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the file of weights, 64 hex digits")


class Run(Section):
    """One run: learn `model` on `data` from `start`, measured by `metric` through `network`."""

    model: str = Field(description="section of models, a file in pipeline/models/")
    data: str = Field(description="section of data")
    start: str = Field(description="run whose weights this run starts from, or none")
    metric: str = Field(description="section of metrics, a file in pipeline/metrics/")
    network: str = Field(description="section of networks that the metric looks through, or none")
    seed: int = Field(ge=0, description="seed of weights, data order, noise and samples")
    changes: dict[str, Any] = Field(description="keys of the model's section that this run changes")
    weights: Weights | None = Field(
        default=None,
        exclude_if=lambda weights: weights is None,
        description="weights from outside of this project that this run starts from, in the place of `start`",
    )
    freeze: list[str] = Field(default=[], description="patterns of weights that stay as the start has them")
    skip: list[str] = Field(default=[], description="patterns of weights that are not taken from the start")
    resume: bool = Field(
        default=False,
        exclude_if=lambda resumes: not resumes,
        description="go on with the training of the start, to more steps: with its optimizers, averages and data order",
    )


class Known(NamedTuple):
    """What is known of a data set: the spec of each field, and, once it is prepared, the manifest's entry per split."""

    fields: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, Any]]


class Params(Section):
    """All of params.yaml; `models` holds each run's model config with the run's own changes applied."""

    data: dict[str, Source]
    networks: dict[str, Network]
    models: dict[str, Trainable]
    metrics: dict[str, Measure]
    runs: dict[str, Run]


def load(path: Path = PATH) -> Params:
    """Read and check a params file.

    Raises:
        ParamsError: with one line for each key that is unknown, missing, of the wrong type or out of range.
    """
    raw = read_mapping(path, SECTIONS_SAID, FOLDER)
    problems = [f"{key}: unknown section{_nearest(str(key), Params.model_fields)}" for key in raw.keys() - SECTIONS]
    problems += [f"{key}: missing section" for key in SECTIONS if not isinstance(raw.get(key), dict)]
    if not problems:
        problems = [problem for section in SECTIONS for problem in _check_names(section, raw[section])]
    if problems:
        raise _error(path, problems)
    runs: dict[str, Run] = {}
    for name, values in raw["runs"].items():
        run = check_section(Run, values, f"runs.{name}", problems)
        if isinstance(run, Run):
            runs[name] = run
            _check_links(name, run, raw, problems)
    _check_starts(runs, problems)
    checked: dict[str, dict[str, Any]] = {}
    for section, family, key in (("data", "data", "source"), ("networks", "networks", "network")):
        checked[section] = {
            name: _plug_in(family, key, f"{section}.{name}", values, problems) for name, values in raw[section].items()
        }
    for section in ("models", "metrics"):
        checked[section] = {
            name: _plug_in(section, None, f"{section}.{name}", values, problems)
            for name, values in raw[section].items()
        }
    _check_networks(raw, checked["data"], problems)
    models: dict[str, Any] = {
        name: _plug_in(
            "models", None, f"runs.{name}.changes", {**raw["models"][run.model], **run.changes}, problems, run.model
        )
        for name, run in runs.items()
        if not problems
    }
    for name, run in runs.items():
        if not problems and run.start == NONE and not run.weights and not models[name].steps:
            problems.append(f"runs.{name}: steps 0 keeps the weights of a start, which is {NONE}")
        problems += [] if problems else _check_kinds(name, run, checked["data"][run.data])
        problems += [] if problems else _check_network(name, run, checked["networks"], checked["data"])
        problems += [] if problems else _check_resumption(name, runs, models)
        problems += [] if problems else _check_start(name, runs, models, checked["data"])
        problems += [] if problems else _check_shared(name, runs, models)
    if problems:
        raise _error(path, problems)
    return Params.model_construct(
        data=checked["data"], networks=checked["networks"], models=models, metrics=checked["metrics"], runs=runs
    )


def load_data(key: str, path: Path = PATH) -> Source:
    """Read and check only the section data.<key>, importing no plug-in but its source.

    Raises:
        ParamsError: as `load`, for this section.
        KeyError: if there is no such section.
    """
    sections = read_mapping(path, SECTIONS_SAID, FOLDER).get("data")
    if not isinstance(sections, dict):
        raise _error(path, ["data: missing section"])
    values = sections[key]
    problems = list(_check_names("data", [key]))
    config = Section() if problems else _plug_in("data", "source", f"data.{key}", values, problems)
    if problems:
        raise _error(path, problems)
    return cast("Source", config)


def find_bad_paths(settings: Params) -> list[str]:
    """Return a sentence for each `path` at which DVC stops without a word about the key."""
    found = []
    for name, source in settings.data.items():
        if not Path(source.path).exists():
            is_read = source.READS_PATH
            why = "expected your files there" if is_read else f"{source.source} ignores it, but DVC watches it"
            found.append(f"data.{name}.path: {source.path!r} not found: {why}; name a file or folder that exists")
        elif (RAW / name).resolve().is_relative_to(Path(source.path).resolve()):
            found.append(
                f"data.{name}.path: {source.path!r} holds what the stages make; name a folder without data/raw"
            )
    return found


SECTIONS = tuple(Params.model_fields)
SECTIONS_SAID, FOLDER = f"a mapping with the sections {', '.join(SECTIONS)}", "the project's folder"


def list_keys(section: str) -> list[str]:
    """Return the keys of a section of params.yaml; none if it cannot be read."""
    try:
        return list(read_mapping(PATH, "", "")[section])
    except (ParamsError, KeyError, TypeError):
        return []


def require_project() -> None:
    """Refuse a folder that is no project's, before a command finds nothing in it.

    Raises:
        ParamsError: if it has no params.yaml.
    """
    _require_file(PATH, FOLDER)


def _require_file(path: Path, folder: str) -> None:
    if not path.exists():
        msg = f"{path.resolve()}: not found; run from {folder}"
        raise ParamsError(msg)


def read_mapping(path: Path, expected: str, folder: str) -> dict[str, Any]:
    """Read a YAML file that is a mapping.

    Args:
        path: the file.
        expected: what it should be, for the message.
        folder: where it lies, for the message.

    Raises:
        ParamsError: if it is missing, no YAML, or no mapping.
    """
    _require_file(path, folder)
    raw = _read_yaml(path)
    if not isinstance(raw, dict):
        msg = f"{path}: expected {expected}, got {_say(raw)}"
        raise ParamsError(msg)
    return raw


def _read_yaml(path: Path) -> Any:
    """Read a YAML file within bounds: a short file can ask for hours, or for more memory than there is.

    Raises:
        ParamsError: if it is no YAML, or exceeds a bound.
    """
    problem = ""
    if (size := path.stat().st_size) > MAX_BYTES:
        problem = f"expected at most {MAX_BYTES} bytes, got {size}"
    else:
        try:
            text = path.read_text(encoding="utf-8")
            problem = _find_excess(text) if "&" in text or _count_brackets(text) > MAX_DEPTH else ""
            if not problem:
                return copy.deepcopy(_parse(text))
        except RecursionError:
            problem = f"expected at most {MAX_DEPTH} levels, got more"
        except (YAMLError, UnicodeDecodeError, ValueError) as error:  # such as a date that no calendar has
            problem = f"not valid YAML: {error}"
    msg = f"{path}: {problem}"
    raise ParamsError(msg)


@functools.lru_cache(maxsize=16)
def _parse(text: str) -> Any:
    """Parse YAML; a training reads its params a dozen times, and each time would take 40 milliseconds."""
    return YAML(typ="safe", pure=True).load(text)


def _count_brackets(text: str) -> int:
    """Return how many brackets are open at once, at most; those of comments and quotes count too."""
    return max(accumulate((sign in "[{") - (sign in "]}") for sign in text), default=0)


def _find_excess(text: str) -> str:
    """Say which bound a YAML text exceeds, or nothing; an alias counts as much as the values that it repeats."""
    sizes: dict[str, int] = {}
    open_nodes: list[list[Any]] = [["", 0]]  # anchor and size
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, CollectionStartEvent):
            open_nodes.append([event.anchor, 1])
            if len(open_nodes) > MAX_DEPTH:
                return f"expected at most {MAX_DEPTH} levels, line {event.start_mark.line + 1} has more"
            continue
        if isinstance(event, AliasEvent) and event.anchor in (anchor for anchor, _ in open_nodes):
            return f"line {event.start_mark.line + 1}: *{event.anchor} contains itself"
        size = sizes.get(event.anchor, 1) if isinstance(event, AliasEvent) else 1
        if isinstance(event, CollectionEndEvent):
            anchor, size = open_nodes.pop()
            sizes[anchor] = size
        open_nodes[-1][1] += size
        if open_nodes[-1][1] > MAX_VALUES:
            return f"expected at most {MAX_VALUES} values, line {event.start_mark.line + 1} has more, with its aliases"
    return ""


def _check_names(section: str, names: Iterable[Any]) -> Iterator[str]:
    """Yield a problem for each key of a section that could not be a name everywhere."""
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            expected = "a lowercase letter, then up to 63 lowercase letters, digits, _ or -"
            came = "" if isinstance(name, str) else f", which YAML reads as {type(name).__name__}"
            yield f"{section}.{name}: expected a name of {expected}; got {name!r}{came}"
        elif name in RESERVED:
            yield f"{section}.{name}: the name is reserved"


def _check_links(name: str, run: Run, raw: dict[str, Any], problems: list[str]) -> None:
    links = [("model", "models", run.model), ("data", "data", run.data), ("metric", "metrics", run.metric)]
    links += [("start", "runs", run.start)] if run.start != NONE else []
    links += [("network", "networks", run.network)] if run.network != NONE else []
    for key, section, target in links:
        if target not in raw[section]:
            problem = f"runs.{name}.{key}: no section {section}.{target}{_nearest(target, raw[section])}"
            if key in {"model", "metric"}:
                problem += f"; pipeline/{section}/ has {', '.join(plugins.names(section))}"
            problems.append(problem)


def _check_kinds(name: str, run: Run, data: Any) -> list[str]:
    """Return the problems of a run whose data, model, metric and feature networks do not fit together."""
    model, metric = (
        plugins.load(family, plug_in) for family, plug_in in (("models", run.model), ("metrics", run.metric))
    )
    through = getattr(metric, "NETWORK", "none")
    if run.network != NONE and through == "none":
        message = f"metric {run.metric} looks through no feature network, expected {NONE}, got {run.network}"
        return [f"runs.{name}.network: {message}"]
    if run.network == NONE and through == "needed":
        return [f"runs.{name}.network: metric {run.metric} needs a feature network, got {NONE}"]
    if data.KIND in model.LEARNS and data.KIND == metric.KIND:
        return []
    kinds = f"data {run.data} ({data.source}) holds {data.KIND}, model {run.model} learns {' or '.join(model.LEARNS)}"
    return [f"runs.{name}: {kinds}, metric {run.metric} measures {metric.KIND}"]


def _check_network(name: str, run: Run, networks: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """Return the problem of a run whose feature network has learnt another kind of data."""
    learnt = networks[run.network].data if run.network != NONE else run.data
    kinds = [data[each].KIND for each in (learnt, run.data)]
    if kinds[0] == kinds[1]:
        return []
    message = f"networks.{run.network} learns {kinds[0]} (data.{learnt}), data.{run.data} holds {kinds[1]}"
    return [f"runs.{name}.network: {message}"]


def _check_networks(raw: dict[str, Any], data: dict[str, Any], problems: list[str]) -> None:
    for name, values in raw["networks"].items():
        target = values.get("data") if isinstance(values, dict) else None
        if not isinstance(target, str):
            continue
        kinds: Sequence[str] = ()
        if values.get("network") in plugins.names("networks"):
            with contextlib.suppress(ValueError):  # a plug-in that lacks a name has its line already
                kinds = plugins.load("networks", values["network"]).LEARNS
        if target not in raw["data"]:
            problems.append(f"networks.{name}.data: no section data.{target}{_nearest(target, raw['data'])}")
        elif kinds and (kind := getattr(data[target], "KIND", kinds[0])) not in kinds:
            problems.append(f"networks.{name}.data: expected {' or '.join(kinds)}, data.{target} holds {kind}")


def _check_starts(runs: dict[str, Run], problems: list[str]) -> None:
    """Refuse reserved names, and runs that start from one another in a circle."""
    for name, run in runs.items():
        seen, at = [name], run.start
        while at != NONE and at in runs and at not in seen:
            seen.append(at)
            at = runs[at].start
        if at == name and at != NONE:
            problems.append(f"runs.{name}.start: the runs start from one another: {' <- '.join([*seen, at])}")
        if run.weights and run.start != NONE:
            problems.append(f"runs.{name}.weights: a run starts from one model, expected start {NONE}, got {run.start}")
        if run.weights and run.weights.address in runs:
            ours = f"{run.weights.address} is a run of this project, which the key start names"
            problems.append(f"runs.{name}.weights.address: {ours}")
        if run.start == NONE and not run.weights and (run.freeze or run.skip):
            problems.append(f"runs.{name}: freeze and skip are about the weights of a start, which is {NONE}")


def _check_resumption(name: str, runs: dict[str, Run], models: dict[str, Trainable]) -> list[str]:
    """Return the problems of a run that goes on with the training of its start."""
    run = runs[name]
    if not run.resume:
        return []
    if run.start == NONE:
        return [f"runs.{name}.resume: there is no training to go on with: start is {NONE}"]
    if run.skip:
        return [f"runs.{name}.skip: with resume every weight comes from the start: drop skip, and change no layer"]
    if run.model != (model := runs[run.start].model):
        return [f"runs.{name}.model: expected {model}, the model of its start {run.start}, got {run.model}"]
    if (steps := models[name].steps) <= (done := models[run.start].steps):
        counted = f"expected more than the {done} of its start {run.start}, which count too"
        return [f"runs.{name}.changes.steps: {counted}, got {steps}"]
    return []


def _check_start(name: str, runs: dict[str, Run], models: dict[str, Any], data: Mapping[str, Any]) -> list[str]:
    """Return the problems of a run whose start cannot give it what its keys ask for."""
    run = runs[name]
    starts = getattr(plugins.load("models", run.model), "STARTS", ())
    if starts and not run.weights and (run.start == NONE or runs[run.start].model not in starts):
        came = run.start if run.start == NONE else f"{run.start} of the model {runs[run.start].model}"
        return [f"runs.{name}.start: model {run.model} needs a run of the model {' or '.join(starts)}, got {came}"]
    if getattr(models[name], "lora_rank", 0) and (run.freeze or run.skip):
        what = "only adapters of all blocks are trained, so that freeze keeps nothing and skip leaves fresh weights"
        return [f"runs.{name}: lora_rank: {what}; drop freeze and skip"]
    if not run.resume:
        return []
    if not models[run.start].steps:
        return [f"runs.{name}.resume: its start {run.start} has steps 0, and so no training to go on with"]
    if run.data != (same := runs[run.start].data) and getattr(data[run.data], "tokenizer", "") == "character":
        # the weights of the state have a row for each character, in the order of that text
        return [f"runs.{name}.data: with resume and tokenizer character expected {same}, as its start, got {run.data}"]
    return []


def _check_shared(name: str, runs: dict[str, Run], models: dict[str, Any]) -> list[str]:
    """Return the problems of a run with a part that comes from its start, and that its keys describe otherwise."""
    run = runs[name]
    if run.start == NONE:
        return []
    is_same = runs[run.start].model == run.model
    found = []
    for key, theirs in getattr(plugins.load("models", run.model), "SHARED", {}).items():
        expected, got = getattr(models[run.start], key if is_same else theirs), getattr(models[name], key)
        if got != expected:
            found.append(f"runs.{name}: {key}: expected {expected} as in its start {run.start}, got {got}")
    return found


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
    return check_section(module.Config, values, name, problems)


def _describe_absence(name: str, key: str, values: object) -> str:
    """Say why a section does not name its plug-in: it is no mapping, or the key is missing or mistyped."""
    if not isinstance(values, dict):
        return f"{name}: no mapping, got {_say(values)}"
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
            annotation = config.model_fields[str(part)].annotation
            for inner in (annotation, *get_args(annotation)):  # `Weights | None` is a union
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    config = inner
        return f"{where}: unknown key{_nearest(str(item['loc'][-1]), config.model_fields)}"
    if item["type"] == "missing":
        return f"{where}: missing key"
    message = item["msg"].removeprefix("Value error, ")
    came = "" if item["type"] == "value_error" and isinstance(item["input"], dict) else f", got {_say(item['input'])}"
    return f"{where}: {message[0].lower()}{message[1:]}{came}"


def _say(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SAID else f"{text[:MAX_SAID]}... ({len(text)} characters)"


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
        resolved = {**run_config.model_dump(), "changes": params.models[run_name].model_dump()}
        print(run_name, json.dumps(resolved))
    for bad in find_bad_paths(params):
        print(bad, file=sys.stderr)
