"""dvc.yaml against the code: a stage depends on every file that can change what it makes, and on no other."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline import plugins
from tests.conftest import ROOT
from tests.test_architecture import IMPORTS, MODULES

STAGES: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
# Imported by stages, and no dependency of theirs: an edit would make every run stale and change no number.
LEFT_OUT = {
    "plugins": "finds files; which ones, the other dependencies say",
    "params": "checks values; which ones, the stage's params say",
    "artifacts": "carries what is made from stage to stage, under a hash",
    "stages": "starts a stage and words its errors",
    "costs": "notes seconds and memory",
    "seals": "hashes what is made",
    "store": "looks whether DVC's cache has the inputs",
    "preemption": "stops a stage",
    "processes": "starts the processes of a training, whose number changes no bit of what is drawn",
    "sharding": "divides the weights among the processes of a training: hardware, as their number",
    "checkpoints": "keeps a training's state, which goes on with the same bits",
    "leftovers": "closes records that a crash left open",
    "alarms": "comments on a training",
    "record": "keeps a training's history, and draws grids",
    "tracking": "shows the record in MLflow",
}
UNUSED = {  # imported, and not called by this stage
    ("prepare", "data.download"): "fetches",
    ("evaluate", "data.download"): "fetches",
    ("evaluate", "tokenization"): "restores a text model's tokenizer; feature networks have none",
    ("features", "tokenization"): "the same",
    ("train", "metrics.points"): "previews, which are history",
    ("train", "models.decoding"): "the same",
}
PLUG_INS = {  # the files that a stage loads by name, each list is one choice
    "prepare": [[f"data.{name}"] for name in plugins.names("data")],
    "features": [[f"models.{name}"] for name in ("classifier", "inception")],
    "train": [[f"models.{name}"] for name in ("gan", "vae", "transformer")],
    "sample": [[f"models.{name}"] for name in ("gan", "vae", "transformer")],
    "evaluate": [[f"metrics.{name}", "models.classifier", "models.inception"] for name in plugins.names("metrics")],
    "report": [[f"metrics.{name}" for name in plugins.names("metrics")]],
}


def follow(modules: Iterable[str]) -> set[str]:
    """These modules of the package and all that they import, at any depth, without what is left out and its imports."""
    found = {f"pipeline.{name}" for name in LEFT_OUT}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in MODULES and module not in found:
            found.add(module)
            waiting += IMPORTS[module]
    return found - {"pipeline"}


def needed(stage: str, plug_ins: list[str]) -> set[str]:
    """Files below pipeline/ that can change what a stage makes with these plug-ins."""
    found = follow([f"pipeline.stages.{stage}", *(f"pipeline.{name}" for name in plug_ins)])
    names = {module.removeprefix("pipeline.") for module in found}
    names -= LEFT_OUT.keys() | {name for which, name in UNUSED if which == stage}
    return {MODULES[f"pipeline.{name}"] for name in names}


def listed(stage: str, plug_ins: list[str]) -> Iterator[str]:
    """Files below pipeline/ that dvc.yaml lists for a stage with these plug-ins; folders stand for their files."""
    family, _, name = plug_ins[0].partition(".")
    for dependency in STAGES[stage].get("do", STAGES[stage])["deps"]:
        path = dependency
        for key in ("source", "network", "model", "metric"):
            path = path.replace(f"pipeline/{family}/${{item.{key}}}.py", f"pipeline/{family}/{name}.py")
        if not path.startswith("pipeline/"):
            continue
        assert (ROOT / path).exists(), f"{stage}: {path}"
        yield from (file for file in MODULES.values() if Path(f"pipeline/{file}").is_relative_to(path))


@pytest.mark.parametrize(
    ("stage", "plug_ins"), [(stage, plug_ins) for stage, choices in PLUG_INS.items() for plug_ins in choices]
)
def test_a_stage_depends_on_all_code_that_can_change_what_it_makes(stage: str, plug_ins: list[str]) -> None:
    assert needed(stage, plug_ins) - set(listed(stage, plug_ins)) == set()


@pytest.mark.parametrize("stage", sorted(PLUG_INS.keys() - {"report"}))  # which lists the folder of metrics
def test_a_stage_depends_on_no_code_that_it_never_runs(stage: str) -> None:
    used = set().union(*(needed(stage, plug_ins) for plug_ins in PLUG_INS[stage]))
    unused = set().union(*(listed(stage, plug_ins) for plug_ins in PLUG_INS[stage])) - used
    kept = {MODULES[f"pipeline.{name}"] for name in LEFT_OUT}  # more than is needed is the stage's own choice
    packages = {file for file in unused if file.endswith("__init__.py")}
    assert unused - kept - packages == set()


def test_every_model_and_every_feature_network_is_checked_above() -> None:
    networks = {name for name in plugins.names("models") if hasattr(plugins.load("models", name), "load_features")}
    assert networks == {name.removeprefix("models.") for choice in PLUG_INS["features"] for name in choice}
    models = {name for name in plugins.names("models") if name not in networks}
    assert models == {name.removeprefix("models.") for choice in PLUG_INS["train"] for name in choice}


def test_the_check_depends_on_every_config() -> None:
    dependencies = set(STAGES["check"]["deps"])
    assert {f"pipeline/{family}" for family in plugins.FAMILIES} | {"pipeline/params.py"} <= dependencies
