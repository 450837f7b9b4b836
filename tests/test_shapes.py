"""Projects of another shape than the shipped params.yaml: one kind of data, one run, no run, no feature network."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from pipeline import artifacts, params
from pipeline.stages import __main__ as runner
from tests.conftest import ROOT, TINY, set_value, write_pictures

SHIPPED = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
SECTIONS = tuple(SHIPPED)
POINTS = {"source": "gaussians", "path": "data/own", "count": 200, "data_seed": 0, "layout": "ring", "modes": 8}
SPOKEN = {"source": "spoken_digits", "path": "data/own", "split_seed": 0, "validation": 0.1, "test": 0.2}
PICTURES = {"source": "image_folder", "path": "own pictures", "size": 8, "channels": 1, "split_seed": 0}
ODD_PATH = 'own texts/it\'s $(touch ran) & "so" on'


def make_tiny() -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    for key, value in TINY.items():
        set_value(values, key, value)
    values["data"]["images"] = PICTURES | {"validation": 0.1, "test": 0.35}
    values["metrics"]["images"]["sampling"] |= {"count": 60, "sets": 2}
    return values


def keep(values: dict[str, Any], **kept: list[str]) -> dict[str, Any]:
    """Return only the named keys of each section; no other section has any."""
    return {section: {name: values[section][name] for name in kept.get(section, [])} for section in SECTIONS}


def shape_images() -> dict[str, Any]:
    kept = {"data": ["images"], "networks": ["classifier"], "models": ["gan"], "metrics": ["images"], "runs": ["gan"]}
    return keep(make_tiny(), **kept)


def shape_images_without_network() -> dict[str, Any]:
    values = keep(make_tiny(), data=["images"], models=["vae"], metrics=["images"], runs=["vae"])
    values["runs"]["vae"]["network"] = "none"
    return values


def shape_text() -> dict[str, Any]:
    values = keep(make_tiny(), data=["text"], models=["transformer"], metrics=["text"], runs=["transformer"])
    values["data"]["text"] |= {"source": "text_file", "path": ODD_PATH}
    return values


def shape_points() -> dict[str, Any]:
    values = keep(make_tiny(), models=["gan"], runs=["gan"])
    values["data"]["ring"] = POINTS | {"deviation": 0.02}
    values["metrics"]["points"] = {"sampling": {"count": 100, "sets": 2}, "deviations": 3.0}
    values["runs"]["gan"] |= {"data": "ring", "metric": "points", "network": "none"}
    return values


def shape_audio() -> dict[str, Any]:
    values = keep(make_tiny())
    values["data"]["spoken"] = SPOKEN | {"samples": 8192, "rate": 8000}
    network = SHIPPED["networks"]["classifier"] | {"data": "spoken", "width": 4, "steps": 3, "shift": 100}
    values["networks"]["hearing"] = network
    return values


def shape_empty() -> dict[str, Any]:
    return keep(make_tiny())


SHAPES: dict[str, tuple[Callable[[], dict[str, Any]], set[str]]] = {  # and the stages after `check`
    "images": (
        shape_images,
        {
            "fetch@images",
            "prepare@images",
            "networks@classifier",
            "train@gan",
            "sample@gan",
            "evaluate@gan",
            "audit@gan",
        },
    ),
    "images without a network": (
        shape_images_without_network,
        {"fetch@images", "prepare@images", "train@vae", "sample@vae", "evaluate@vae"},
    ),
    "text": (
        shape_text,
        {
            "fetch@text",
            "prepare@text",
            "train@transformer",
            "sample@transformer",
            "evaluate@transformer",
            "audit@transformer",
        },
    ),
    "points": (shape_points, {"fetch@ring", "prepare@ring", "train@gan", "sample@gan", "evaluate@gan"}),
    "audio": (shape_audio, {"fetch@spoken", "prepare@spoken", "networks@hearing"}),
    "empty": (shape_empty, set()),
}


@pytest.fixture(params=SHAPES)
def project(request: pytest.FixtureRequest, workdir: Path) -> tuple[Path, set[str]]:
    """A project without results, and the stages that it should have."""
    make, stages = SHAPES[request.param]
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, workdir)
    (workdir / ".dvc").mkdir()
    (workdir / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    (workdir / "pipeline").symlink_to(ROOT / "pipeline")
    (workdir / "data" / "own").mkdir(parents=True)
    write_pictures(workdir / "own pictures", 240)
    (workdir / ODD_PATH).mkdir(parents=True)
    (workdir / ODD_PATH / "a 'b'.txt").write_text("It was a dark and stormy night. " * 200, encoding="utf-8")
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(make(), file)
    audits = {stage.replace("evaluate@", "audit@") for stage in stages if stage.startswith("evaluate@")}
    return workdir, {"check", "report"} | stages | audits


def read_stages(folder: Path) -> list[Any]:
    """The stages of dvc.yaml as DVC resolves them, each after those that it depends on."""
    return list(nx.topological_sort(Repo(str(folder)).index.graph.reverse()))


def test_every_shape_has_its_stages_and_no_other(project: tuple[Path, set[str]]) -> None:
    folder, expected = project
    params.load()
    stages = read_stages(folder)
    assert {stage.addressing for stage in stages} == expected
    for stage in stages:  # a shell runs it, and a path may hold anything
        assert re.fullmatch(r"python -m pipeline\.stages [a-z]+( [a-z0-9_-]+)?", stage.cmd)
    runner.main(["check"])
    for stage in stages[1:]:
        code = [dep.def_path for dep in stage.deps if dep.def_path.startswith("data/code/")]
        assert [path for path in code if not (folder / path).exists()] == []
        assert len(code) == 1
    assert {path.stem for path in (folder / "data" / "code").rglob("*.json")} == {
        name.partition("@")[2] or name for name in expected - {"check"}
    }


@pytest.mark.slow
def test_every_shape_runs_from_the_first_stage_to_the_report(project: tuple[Path, set[str]]) -> None:
    folder, _ = project
    for stage in read_stages(folder):
        assert [dep.def_path for dep in stage.deps if not os.path.lexists(dep.fs_path)] == [], stage
        _, _, command = stage.cmd.partition("python -m pipeline.stages ")
        runner.main(command.split())
        assert [out.def_path for out in stage.outs if not Path(out.fs_path).exists()] == [], stage
    assert not list(folder.rglob("ran"))
    for run in params.load().runs:
        assert artifacts.read_json(folder / "reports" / "runs" / run / "metrics.json")
