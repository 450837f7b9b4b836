"""Trains on your own files: a folder of pictures or sounds, with or without folders of classes, or texts.

    pipeline own ~/pictures                       # look, write params.yaml, train, measure, report
    pipeline own ~/pictures --look                # only look and write params.yaml
    pipeline own ~/pictures size=64 --steps 500   # with another key of the data section, and short trainings
    pipeline own novel.txt --name novel

It adds sections to params.yaml: the data, a feature network for them, and a run for each model that learns them. It
trains these runs and no others, whose results stay even if it fails. The same command again resumes; with other keys it
replaces the sections. Pictures without classes get models without classes, and the feature network `rotation`, which
needs none. If there are too few pictures to compare their features, the runs have no feature network. They then measure
the likelihood only, and show pictures.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser, read_count
from pipeline.commands import repro as stages
from pipeline.history import dvc_lock
from pipeline.kinds import read_known
from pipeline.params import NONE, ParamsError
from pipeline.runtime.preemption import PREEMPTED
from pipeline.runtime.requirements import require_run

FEW = 5000  # training pictures, below which a discriminator learns them by heart
# Keys of a GAN for so few: adaptive augmentation and strong penalties, by the measurement of docs/data.md.
FEW_PICTURES = {"augment": ["translation", "affine"], "augment_target": 0.6, "augment_images": 50_000}
FEW_PICTURES |= {"r1": 10.0, "r2": 10.0, "final_penalty": 1.0}
# Keys of a feature network that is trained; a network has those that its Config names. A kind may have others in
# its own NETWORK, and keys of models in MODEL.
NETWORK = {"seed": 0, "width": 16, "steps": 1000, "batch_size": 64, "learning_rate": 3.0e-3}
NETWORK |= {"weight_decay": 0.05, "shift": 2, "temperature": 0.2}


class Found(NamedTuple):
    """A source that reads the files, the keys of a section for them, and what was seen."""

    source: str
    keys: dict[str, Any]
    said: str


class StoppedError(Exception):
    """A signal stopped the stages."""


def main(arguments: list[str]) -> int:
    """Add the sections, and make the runs; status 1 if a stage fails, 75 after a signal."""
    parser = make_parser("own", __doc__)
    parser.add_argument("path", metavar="PATH", type=Path, help="a folder, or a file")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="keys of the data section, such as size=64")
    parser.add_argument("--name", help="name of the sections; default: that of the folder")
    parser.add_argument("--steps", type=read_count, help="steps of each training; default: those of params.yaml")
    parser.add_argument("--look", action="store_true", help="train nothing")
    options = parser.parse_intermixed_args(arguments)  # keys may come after options
    name = options.name or name_section(options.path)
    found = find_source(options.path)
    print(f"{options.path}: {found.said}")
    section = {"source": found.source, "path": shorten(options.path), **found.keys, **read_keys(options.keys)}
    require_free(name, section)
    try:
        make(name, section, options)
    except StoppedError:
        return PREEMPTED
    return 0


def make(name: str, section: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Write the sections, and make what they need.

    Raises:
        StoppedError: after a signal; the same command goes on.
        ArtifactError: if a stage fails, or nothing can work with the data; until then, params.yaml stays as it was.
    """
    before = {path: path.read_text(encoding="utf-8") for path in (params.PATH, dvc_lock.PATH) if path.exists()}
    try:
        write({"data": {name: section}})
        params.load()
        repro(f"prepare@{name}")
        runs = choose_runs(name, options.steps)
    except BaseException:
        for path, text in before.items():
            artifacts.write_bytes(path, text.encode())
        print(f"{params.PATH} is as it was before")
        raise
    targets = [f"evaluate@{run}" for run in runs]
    if options.look:
        print(f"{params.PATH} has the sections; `pipeline repro {' '.join(targets)}` trains the runs")
        return
    repro(*targets)
    show(runs)


def require_free(name: str, section: Mapping[str, Any]) -> None:
    """Refuse a name that params.yaml gives to other data.

    Raises:
        ArtifactError: with the option that chooses another one.
    """
    content = params.read_mapping(params.PATH, params.SECTIONS_SAID, params.FOLDER)
    known = content["data"].get(name)
    if known and any(known.get(key) != section[key] for key in ("source", "path")):
        came = f"{known.get('source')} at {known.get('path')}"
        msg = f"{params.PATH}: data.{name} is {came}; --name chooses another name for {section['path']}"
        raise ArtifactError(msg)


def find_source(path: Path) -> Found:
    """Return the source that reads most files at a path.

    Raises:
        ArtifactError: if none reads any.
    """
    found = {}
    for name in plugins.names("data"):
        suggest = getattr(plugins.load("data", name), "suggest", None)
        if suggest and path.exists() and (told := suggest(path)):
            found[name] = told
    if not found:
        came = "no such file in it" if path.exists() else "nothing"
        msg = f"{path}: expected a folder of pictures, sounds or texts, or one text; found {came}"
        raise ArtifactError(msg)
    source = max(found, key=lambda name: found[name][0])
    return Found(source, *found[source][1:])


def name_section(path: Path) -> str:
    """Return a name for the sections: that of the file or folder in lowercase, without other signs."""
    whole = path.resolve()
    name = re.sub("[^a-z0-9_]+", "-", (whole.name if whole.is_dir() else whole.stem).lower()).strip("-_")[:40]
    return name if params.NAME.fullmatch(name) and name != NONE else f"own-{name}".strip("-")


def shorten(path: Path) -> str:
    """Return the path from this folder on, or the whole of one outside."""
    whole, here = path.resolve(), Path.cwd().resolve()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def read_keys(words: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE; a value is as in YAML."""
    if wrong := [word for word in words if "=" not in word]:
        msg = f"expected KEY=VALUE, such as size=64, got {wrong[0]!r}"
        raise ArtifactError(msg)
    found = {}
    for word in words:
        key, _, value = word.partition("=")
        try:
            found[key] = YAML(typ="safe", pure=True).load(value)
        except YAMLError:
            msg = f"{word}: expected a value as in YAML, got {value!r}"
            raise ArtifactError(msg) from None
    return found


def write(sections: Mapping[str, Mapping[str, Any]], path: Path = params.PATH) -> None:
    """Put sections at the beginning of theirs in params.yaml, and keep all comments; a run becomes one line."""
    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    content = yaml.load(params.PATH.read_text(encoding="utf-8"))
    for family, named in sections.items():
        for name, section in reversed([*named.items()]):
            value = yaml.map(**section)
            if family == "runs":
                value.fa.set_flow_style()
            content[family].pop(name, None)
            content[family].insert(0, name, value)
    text = StringIO()
    yaml.dump(content, text)
    artifacts.write_bytes(path, text.getvalue().encode())


def choose_runs(name: str, steps: int | None) -> list[str]:
    """Write a run for each model that learns the prepared data, and the first feature network that fits.

    Raises:
        ArtifactError: if no model and metric can work with the data.
    """
    manifest = artifacts.read_manifest(name)
    reason = ""
    for network in [*list_networks(manifest["kind"]), NONE]:
        sections = make_sections(name, network, manifest, steps)
        try:
            require_sections(name, sections)
        except (ArtifactError, ParamsError) as error:
            reason = str(error)
            continue
        if network == NONE and reason:
            print(f"networks: none fits, so that no features are compared: {reason}")
        for line in [*describe(sections), *describe_replaced(sections)]:
            print(line)
        write(sections)
        return list(sections["runs"])
    raise ArtifactError(reason)


def list_networks(kind: str) -> list[str]:
    """List the feature networks that learn a kind of data from the data themselves."""
    modules = {name: plugins.load("networks", name) for name in plugins.names("networks")}
    return [name for name, module in modules.items() if kind in module.LEARNS and not hasattr(module, "fetch")]


def make_sections(name: str, network: str, manifest: Mapping[str, Any], steps: int | None) -> dict[str, dict[str, Any]]:
    """Return the sections of networks and runs for prepared data."""
    settings = params.read_mapping(params.PATH, params.SECTIONS_SAID, params.FOLDER)
    kind = manifest["kind"]
    usual = plugins.load("kinds", kind)
    metrics = [metric for metric in settings["metrics"] if kind == plugins.load("metrics", metric).KIND]
    if not metrics:
        msg = f"{params.PATH} has no metric that measures {kind}; it has {', '.join(settings['metrics'])}"
        raise ArtifactError(msg)
    networks = {}
    if network != NONE:
        config = plugins.load("networks", network).Config.model_fields
        own = NETWORK | getattr(usual, "NETWORK", {})
        keys = {key: value for key, value in own.items() if key in config}
        keys["steps"] = min(keys["steps"], steps or keys["steps"])
        networks[f"{name}-{network}"] = {"network": network, "data": name, **keys}  # metrics are named after it
    shared = {"data": name, "start": NONE, "metric": metrics[0], "network": next(iter(networks), NONE), "seed": 0}
    wanted = adapt(manifest, getattr(usual, "MODEL", {})) | ({"steps": steps} if steps else {})
    runs = {}
    modules = {model: plugins.load("models", model) for model in settings["models"]}
    chained = {start for module in modules.values() for start in getattr(module, "STARTS", ())}  # parts of other models
    for model, module in modules.items():
        values = settings["models"][model]
        if kind in module.LEARNS and model not in chained:
            short = {key: min(values.get(key, 0), steps // 10) for key in ("warmup", "kl_warmup")} if steps else {}
            known = {key: value for key, value in (wanted | short).items() if key in module.Config.model_fields}
            changes = {key: value for key, value in known.items() if values.get(key) != value}
            runs[f"{name}-{model}"] = {"model": model, **shared, "changes": changes}
    return {"networks": networks, "runs": runs}


def adapt(manifest: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of models that depend on the data: classes, grey levels or colours, few pictures.

    `usual`: those of the kind, which come first; a kind that is not augmented has no pictures.
    """
    classes = manifest["fields"].get("labels", {}).get("classes", 0)
    is_small = "augment" not in usual and manifest["splits"]["train"].get("count", FEW) < FEW
    unguided = {} if classes > 1 else {"label_dropout": 0.0, "guidance": 1.0}
    grey = {"likelihood": "discretized_logistic", "pixel_temperature": 1.0}
    return {"conditional": classes > 1, **unguided, **grey, **(FEW_PICTURES if is_small else {}), **usual}


def require_sections(name: str, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse sections that check or a later stage would refuse."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / params.PATH.name
        write(sections, path)
        settings = params.load(path)
    for run in sections["runs"]:
        require_run(run, settings, {name: read_known(name)})


def describe(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each section that is added."""
    for name, network in sections["networks"].items():
        yield f"networks.{name}: {network['network']}, trained on these data; metrics compare its features"
    for name, run in sections["runs"].items():
        changes = ", ".join(f"{key} {value}" for key, value in run["changes"].items())
        yield f"runs.{name}: {run['model']}{f' with {changes}' if changes else ''}"


def describe_replaced(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each section of the same name that says something else, and is lost."""
    content = params.read_mapping(params.PATH, params.SECTIONS_SAID, params.FOLDER)
    for family, named in sections.items():
        for name, section in named.items():
            if content[family].get(name, section) != section:
                yield f"{family}.{name} is replaced; it was {json.dumps(content[family][name])}"


def repro(*targets: str, single_item: bool = False) -> None:
    """Run stages as `pipeline repro -j 1` does: Ctrl-C lets a training save its state, and cuts no file.

    `single_item`: run only the targets, as DVC's option of this name does.

    Raises:
        StoppedError: after a signal.
        ArtifactError: if a stage fails.
    """
    if single_item:
        status = stages.run({target: set() for target in targets}, 1, lambda _: True)
    else:
        status = stages.main(["-j", "1", *targets])
    if status == PREEMPTED:
        raise StoppedError
    if status:
        msg = f"pipeline repro {' '.join(targets)} failed; its own message is above"
        raise ArtifactError(msg)


def show(runs: list[str]) -> None:
    """Make the report if every run has its results here, and say where to look."""
    for run in runs:
        print(f"{run}: samples and numbers in {artifacts.REPORTS / 'runs' / run}")
    if absent := [run for run in params.load().runs if not (artifacts.RUNS / run / "samples").exists()]:
        print(f"no report, because {', '.join(absent)} have no results here: `dvc repro` makes them and the report.")
        print(f"If you first remove their lines from {params.PATH}, it makes only the report")
        return
    repro("report", single_item=True)
    print(f"report: {(artifacts.REPORTS / 'index.html').resolve().as_uri()}")
