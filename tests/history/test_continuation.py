"""A finished training that another run goes on with: the bits of one training, and refusals of what does not fit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from ruamel.yaml import YAML

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.history import continuation
from pipeline.history.record import Record
from pipeline.stages import train
from pipeline.training import OwnSettings
from pipeline.weights import WEIGHTS
from tests.test_training import describe, differences, make, make_record
from tests.test_training import train as fit

FOLDER = Path("data/runs/first")
CONSTANT: dict[str, dict[str, Any]] = {
    "gan": {"final_learning_rate": 1.0, "final_penalty": 1.0},
    "vae": {"final_learning_rate": 1.0, "warmup": 3},
    "transformer": {"final_learning_rate": 1.0, "warmup": 3},
}


class Rates(Callback):
    """Notes the learning rates of each step."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_before_zero_grad(self, trainer: Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append([group["lr"] for group in optimizer.param_groups])


def finish(name: str, steps: int, changes: dict[str, Any]) -> Record:
    """Train the run `first` and keep its state, as the stage does."""
    state = Path(".state/train-first/0")
    model, _ = fit(name, steps=steps, state=state, changes={**changes, "steps": steps})
    artifacts.write_tensors(FOLDER / "model" / WEIGHTS, model.kept.state_dict())
    record = make_record(FOLDER / "record")
    continuation.keep_state(record, state, steps, FOLDER / "model")
    return record


def go_on(name: str, changes: dict[str, Any], *callbacks: Callback) -> tuple[Any, Trainer]:
    state = Path(".state/train-second/0")
    own = [OwnSettings()] if continuation.lend_state("first", state, make(name, **changes)[0]) else []
    return fit(name, state=state, changes=changes, callbacks=[*own, *callbacks])


@pytest.mark.parametrize("name", ["gan", "vae", "transformer"])
@pytest.mark.usefixtures("workdir")
def test_five_steps_and_five_more_are_ten_to_the_last_bit(name: str) -> None:
    straight = fit(name, changes=CONSTANT[name])
    finish(name, 5, CONSTANT[name])
    assert differences(describe(*straight), describe(*go_on(name, CONSTANT[name]))) == []


@pytest.mark.usefixtures("workdir")
def test_the_schedule_is_that_of_all_steps_and_the_settings_are_the_run_s_own() -> None:
    straight, longer = Rates(), Rates()
    changes = {"learning_rate": 3e-3, "weight_decay": 0.5, "warmup": 2, "final_learning_rate": 0.1}
    fit("vae", changes=changes, callbacks=[straight])
    finish("vae", 5, {})
    _, trainer = go_on("vae", changes, longer)
    assert longer.seen == straight.seen[5:]
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.5


@pytest.mark.usefixtures("workdir")
def test_what_does_not_fit_is_refused() -> None:
    record = finish("transformer", 5, {})
    with pytest.raises(ArtifactError, match=r"another optimizer: expected .*amsgrad.*; its state has .*momentum"):
        go_on("transformer", {"optimizer": "adamw"})
    with pytest.raises(ArtifactError, match=r"does not fit.*\n  average.module.blocks.1.attention_norm.weight: noth"):
        continuation.lend_state("first", Path("other"), make("transformer", layers=2)[0])
    (FOLDER / "record" / continuation.STATE).write_bytes(b"broken")
    with pytest.raises(ArtifactError, match=r"record/state.ckpt: expected SHA-256 \w{64}, found \w{64}; `pipeline ver"):
        continuation.lend_state("first", Path("other"), make("transformer")[0])
    artifacts.write_tensors(FOLDER / "model" / WEIGHTS, {"x": torch.zeros(1)})
    with pytest.raises(ArtifactError, match=r"its state belongs to weights \w{16}, data/runs/first/model has \w{16}; "):
        continuation.read_state("first")
    del record.about["state"]
    record.save()
    with pytest.raises(ArtifactError, match=r"kept no state to go on from; `dvc repro --force train@first` trains it"):
        continuation.read_state("first")
    (FOLDER / "record" / "run.json").unlink()
    with pytest.raises(ArtifactError, match=r"run.json: not found; `dvc pull train@first` or `dvc repro train@first`"):
        continuation.read_state("first")


@pytest.mark.usefixtures("workdir")
def test_a_state_of_an_earlier_step_is_not_kept_as_the_last() -> None:
    record = make_record(FOLDER / "record")
    fit("vae", steps=5, state=Path("state"), changes={"steps": 5})
    continuation.keep_state(record, Path("state"), 6, FOLDER / "model")
    assert "state" not in record.about


@pytest.mark.usefixtures("workdir")
def test_a_full_disk_costs_the_state_and_not_the_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")

    fit("vae", steps=1, state=Path("state"), changes={"steps": 1})
    monkeypatch.setattr(torch, "save", fail)
    record = make_record(FOLDER / "record")
    continuation.keep_state(record, Path("state"), 1, FOLDER / "model")
    assert "state" not in record.about
    assert {path.name for path in record.folder.iterdir()} == {"run.json"}
    assert "no run can go on with this training" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("tiny", "prepared")
def test_the_stage_goes_on_from_a_finished_run_and_names_it(workdir: Path) -> None:
    add_run(workdir, "longer", start="vae", resume=True, changes={"steps": 6})
    for name in ("vae", "longer"):
        train.main(name)
    first, second = (Record(artifacts.RUNS / name / "record").about for name in ("vae", "longer"))
    parent = {"start.run": "vae", "start.record": first["id"], "start.step": "4"}
    assert parent.items() <= second["tags"].items()
    assert second["state"]["step"] == 6
    lines = (artifacts.RUNS / "longer" / "record" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == {5, 6}
    assert not list((workdir / ".state").rglob("*.ckpt"))


def add_run(workdir: Path, name: str, **values: Any) -> None:
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load(workdir / "params.yaml")
    content["runs"][name] = {**content["runs"]["vae"], **values}
    yaml.dump(content, workdir / "params.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": "none"}, "runs.longer.resume: there is no training to go on with: start is none"),
        ({"start": "gan"}, "runs.longer.model: expected gan, the model of its start gan, got vae"),
        ({"skip": ["prior.*"]}, "runs.longer.skip: with resume every weight comes from the start"),
        ({"changes": {}}, "runs.longer.changes.steps: expected more than the 1500 of its start vae, which count too"),
    ],
)
def test_a_run_that_cannot_go_on_is_refused_by_its_key(workdir: Path, values: dict[str, Any], message: str) -> None:
    add_run(workdir, "longer", **({"start": "vae", "resume": True, "changes": {"steps": 1600}} | values))
    with pytest.raises(params.ParamsError, match=re.escape(message)):
        params.load()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": "still", "changes": {"steps": 5}}, "runs.last.resume: its start still has steps 0"),
        (
            {"start": "transformer", "data": "other"},
            "runs.last.data: with resume and tokenizer character expected text",
        ),
    ],
)
def test_a_start_whose_state_does_not_fit_is_refused_by_its_key(
    workdir: Path, values: dict[str, Any], message: str
) -> None:
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load(workdir / "params.yaml")
    content["data"]["other"] = content["data"]["text"]  # its tokens may have another order
    first = content["runs"]["transformer"]
    content["runs"]["still"] = {**first, "start": "transformer", "changes": {"steps": 0}}
    content["runs"]["last"] = {**first, "resume": True, "changes": {"steps": 10**6}, **values}
    yaml.dump(content, workdir / "params.yaml")
    with pytest.raises(params.ParamsError, match=re.escape(message)):
        params.load()


def test_adapters_go_with_no_pattern_of_weights(workdir: Path) -> None:
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load(workdir / "params.yaml")
    first = content["runs"]["transformer"]
    content["runs"]["last"] = {**first, "start": "transformer", "freeze": ["blocks.0.*"], "changes": {"lora_rank": 2}}
    yaml.dump(content, workdir / "params.yaml")
    with pytest.raises(params.ParamsError, match=r"runs\.last: lora_rank: .* drop freeze and skip"):
        params.load()


@pytest.mark.usefixtures("workdir")
def test_a_run_of_no_step_passes_on_the_parts_of_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"config": {"run": {"start": "first"}, "model": {"steps": 0}}}
    artifacts.write_json(artifacts.RUNS / "still" / "record" / "run.json", about)
    torch.save({"state_dict": {"discriminator.x": torch.ones(1), "generator.x": torch.ones(1)}}, "state.ckpt")
    monkeypatch.setattr(continuation, "find_state", {"first": Path("state.ckpt")}.__getitem__)
    assert list(continuation.read_parts("still", ("discriminator",))) == ["discriminator.x"]
