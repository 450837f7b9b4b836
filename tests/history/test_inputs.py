"""A stage that ends with other inputs than it began with fails, in one line, and loses nothing."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import artifacts, code, plugins, training
from pipeline.artifacts import ArtifactError
from pipeline.history import dvc_cache, inputs
from pipeline.history.mlflow_store import connect
from pipeline.stages import __main__ as runner
from pipeline.stages import train
from tests.conftest import ROOT


def add(path: str, text: str) -> Callable[[], None]:
    def change() -> None:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)

    return change


def replace(path: str, old: str, new: str) -> Callable[[], None]:
    def change() -> None:
        before = Path(path).read_text(encoding="utf-8")
        assert before.count(old) >= 1
        Path(path).write_text(before.replace(old, new, 1), encoding="utf-8")

    return change


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package whose text is read; what runs is the original."""
    target = tmp_path / "pipeline"
    shutil.copytree(plugins.PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.setattr(plugins, "PACKAGE", target)
    code.read_module.cache_clear()
    yield target
    code.read_module.cache_clear()


@pytest.fixture
def project(workdir: Path, package: Path) -> Path:
    """A project whose data, and the start of a run, are files of a few bytes."""
    assert package.parent == workdir
    artifacts.write_json(Path("data/code/train/gan.json"), {"digest": "0"})
    artifacts.write_json(Path("data/runs/none/model/config.json"), None)
    artifacts.write_bytes(Path("data/prepared/images/train.safetensors"), b"1234")
    return workdir


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (replace("params.yaml", "steps: 2400", "steps: 99"), "params.yaml: models.gan.steps (2400, now 99)"),
        (replace("params.yaml", "seed: 0, changes", "seed: 7, changes"), "params.yaml: runs.gan.seed (0, now 7)"),
        (add("data/prepared/images/train.safetensors", "5"), "data/prepared/images/train.safetensors"),
        (add("data/prepared/images/new.json", "5"), "data/prepared/images/new.json"),
        (replace("data/code/train/gan.json", '"0"', '"1"'), "data/code/train/gan.json"),
        (replace("pipeline/models/gan.py", "return", "pass; return"), "its code"),
    ],
)
def test_a_change_of_what_a_stage_reads_is_named_in_one_line(change: Callable[[], None], named: str) -> None:
    seen = inputs.read("train", "gan")
    change()
    with pytest.raises(ArtifactError) as error:
        seen.require_same()
    assert str(error.value).startswith(f"train@gan: changed while it ran: {named}; its result is of the old inputs")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "change",
    [
        add("params.yaml", "# a comment\n"),
        replace("params.yaml", "steps: 1500", "steps: 99"),  # of another model
        replace("params.yaml", "latent: 100", "latent: 0x64"),
        lambda: artifacts.write_json(Path("data/code/train/gan.json"), {"digest": "0"}),  # as `check` does
        add("pipeline/models/gan.py", "# a comment\n"),
        replace("pipeline/models/vae.py", "return", "pass; return"),
        lambda: None,
    ],
)
def test_comments_and_what_another_stage_reads_are_no_change(change: Callable[[], None]) -> None:
    seen = inputs.read("train", "gan")
    change()
    seen.require_same()


@pytest.mark.usefixtures("project")
def test_a_stage_of_dvc_starts_with_the_code_that_check_has_found() -> None:
    seen = inputs.read("train", "gan")
    with pytest.raises(ArtifactError, match="train@gan: its code has changed since the stage check"):
        seen.require_checked()
    artifacts.write_json(Path("data/code/train/gan.json"), {"digest": seen.digest})
    inputs.read("train", "gan").require_checked()
    inputs.read("check").require_checked()  # which finds the code itself


@pytest.mark.usefixtures("workdir")
def test_a_key_without_a_section_is_left_to_the_stage() -> None:
    found = inputs.read("train", "x")
    assert (found.names, found.paths, found.digest) == ([], [], "")


@pytest.mark.slow
def test_the_inputs_are_those_that_dvc_certifies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stages = {stage.name: stage for stage in dvc_cache.read_index().stages}
    assert {"check", "fetch@images", "train@gan", "report"} <= stages.keys()
    for name, stage in stages.items():
        found = inputs.read(*name.split("@"))
        deps = {dep.def_path for dep in stage.deps} - {"params.yaml"}
        assert {path.as_posix() for path in found.paths} == deps
        assert {*found.names} == {param for dep in stage.deps for param in getattr(dep, "params", [])}


@pytest.fixture
def prepared(prepared: Path, tiny: None) -> Path:
    """Prepared digits, and trainings of a second."""
    del tiny
    return prepared


def change_during(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> list[int]:
    """Let params.yaml change while a training runs; return the steps that each training has made."""
    made: list[int] = []

    def fit_and_change(*arguments: Any, **named: Any) -> Any:
        start = train.checkpoints.find(named["state"])
        trainer = training.fit(*arguments, **named)
        made.append(trainer.num_training_batches - (start[1] if start else 0))
        change()
        return trainer

    monkeypatch.setattr(train, "fit", fit_and_change)
    return made


def test_a_training_whose_params_change_fails_and_ends_at_once_when_they_are_put_back(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, edit_params: Callable[..., None]
) -> None:
    before = (prepared / "params.yaml").read_bytes()
    change_during(monkeypatch, lambda: edit_params({"models.vae.dropout": 0.3}))
    message = "train@vae: changed while it ran: params.yaml: models.vae.dropout (0.1, now 0.3);"
    with pytest.raises(SystemExit, match=re.escape(message)):
        runner.main(["train", "vae"])
    model = artifacts.RUNS / "vae" / "model"
    assert not model.exists()
    (run,) = connect_runs()
    assert run.info.status == "FAILED"
    assert "models.vae.dropout" in run.data.tags["failure"]
    (prepared / "params.yaml").write_bytes(before)
    made = change_during(monkeypatch, lambda: None)
    runner.main(["train", "vae"])
    assert made == [0]  # steps after the kept checkpoint
    artifacts.verify(model)
    (run,) = connect_runs()
    assert (run.info.status, "failure" in run.data.tags) == ("FINISHED", False)
    assert not list((prepared / ".state").rglob("*.ckpt"))


def connect_runs() -> list[Any]:
    client, experiment = connect()
    return list(client.search_runs([experiment]))


def test_a_stage_without_a_state_fails_before_dvc_certifies_it(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, edit_params: Callable[..., None]
) -> None:
    assert workdir.exists()

    def main(key: str) -> None:
        edit_params({"metrics.images.neighbours": 7 if key == "gan" else 3})

    monkeypatch.setitem(runner.sys.modules, "pipeline.stages.evaluate", SimpleNamespace(main=main, __doc__="Stage."))
    with pytest.raises(SystemExit, match=re.escape("evaluate@gan: changed while it ran: params.yaml: metrics.images.")):
        runner.main(["evaluate", "gan"])
