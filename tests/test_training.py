"""Training: resume bit for bit, non-finite losses, values at the right steps."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback

from pipeline import checkpoints, params, plugins
from pipeline.artifacts import ImageSpec, TextSpec
from pipeline.data.loading import Examples, LabelledExamples, TextExamples
from pipeline.preemption import PreemptedError
from pipeline.record import Record
from pipeline.training import NonFiniteError, Recorder, Saver, fingerprint, fit

SPECS: dict[str, Any] = {"images": ImageSpec(shape=(1, 28, 28), classes=10), "text": TextSpec(vocabulary=20)}
CHANGES: dict[str, dict[str, Any]] = {
    "gan": {"generator_width": 4, "discriminator_width": 4},
    "vae": {"width": 4, "hidden": 16, "dropout": 0.2},
    "transformer": {"layers": 1, "width": 16, "heads": 2, "context": 8, "dropout": 0.2, "ema": 0.9},
}


def make(name: str, **changes: Any) -> tuple[Any, Any, Examples]:
    """Build a small model of params.yaml's kind, with the shipped losses and optimizers."""
    config = params.load().models[name]
    config = config.model_validate({**config.model_dump(), "batch_size": 8, "steps": 10} | CHANGES[name] | changes)
    module = plugins.load("models", name)
    generator = torch.Generator().manual_seed(0)
    if module.KINDS == ("text",):
        examples: Examples = TextExamples(
            torch.randint(20, (300,), generator=generator), config.model_dump()["context"], 0
        )
    else:
        images = torch.randint(256, (36, 1, 28, 28), dtype=torch.uint8, generator=generator)
        examples = LabelledExamples({"images": images, "labels": torch.arange(36) % 10})
    return module.Model(config, SPECS[module.KINDS[0]], seed=0), config, examples


def run(name: str, **options: Any) -> Any:
    model, config, examples = make(name)
    clip = config.model_dump().get("clip_norm")
    fit(model, examples, steps=10, batch_size=8, seed=0, clip_norm=clip, **options)
    return model


class Crash(Callback):
    """Raises at a step, after the checkpoint of that step was written."""

    def __init__(self, step: int, folder: Path) -> None:
        self.step = step
        self.saver = Saver(folder, seconds=0)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if index + 1 == self.step:
            self.saver.on_train_batch_end(trainer, module, outputs, batch, index)
            msg = "crash"
            raise InterruptedError(msg)


@pytest.mark.parametrize("step", [1, 5, 9])
@pytest.mark.parametrize("name", ["gan", "vae", "transformer"])
@pytest.mark.fault(1)
def test_a_crashed_training_ends_with_the_bits_of_an_uninterrupted_one(name: str, step: int, tmp_path: Path) -> None:
    straight = run(name)
    with pytest.raises(InterruptedError):
        run(name, callbacks=[Crash(step, tmp_path)])
    found = checkpoints.find(tmp_path)
    assert found
    assert found[1] == step
    torch.manual_seed(99)  # whatever the new process drew before
    resumed = run(name, state=tmp_path)
    expected = straight.state_dict()
    for key, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_a_training_without_a_checkpoint_starts_at_zero(tmp_path: Path) -> None:
    assert checkpoints.find(tmp_path) is None


class Signal(Callback):
    """Sends a signal to this process during a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step = step
        self.number = number

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["gan", "vae", "transformer"])
def test_a_signal_saves_the_step_and_the_next_start_ends_with_the_same_bits(
    name: str, number: int, tmp_path: Path
) -> None:
    handlers = [signal.getsignal(known) for known in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(PreemptedError, match=f"{signal.Signals(number).name} at step 4: the state is saved"):
        run(name, state=tmp_path, callbacks=[Signal(4, number)])
    assert [signal.getsignal(known) for known in (signal.SIGTERM, signal.SIGINT)] == handlers
    resumed, straight = run(name, state=tmp_path), run(name)
    for key, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, straight.state_dict()[key]), key


def test_a_signal_in_the_last_step_lets_the_training_finish(tmp_path: Path) -> None:
    finished, straight = run("vae", state=tmp_path, callbacks=[Signal(10, signal.SIGTERM)]), run("vae")
    assert all(torch.equal(tensor, straight.state_dict()[key]) for key, tensor in finished.state_dict().items())


class Poison(Callback):
    """Makes one gradient infinite after the backward pass of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx + 1 == self.step:
            next(p for p in module.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf


@pytest.mark.parametrize("name", ["gan", "vae", "transformer"])
@pytest.mark.fault(2)
def test_a_gradient_that_is_not_finite_stops_before_the_update_and_names_step_and_weight(name: str) -> None:
    model, config, examples = make(name)
    clip = config.model_dump().get("clip_norm")
    with pytest.raises(NonFiniteError, match=r"step 3: the gradient of [\w.]+ is not finite"):
        fit(model, examples, steps=10, batch_size=8, seed=0, clip_norm=clip, callbacks=[Poison(3)])
    assert checkpoints.find_broken(model) == ""


@pytest.mark.parametrize("name", ["gan", "vae", "transformer"])
@pytest.mark.fault(2)
def test_a_loss_that_is_not_finite_stops_the_training_with_step_and_name(name: str) -> None:
    model, _, examples = make(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"step 1: .* not finite"):
        fit(model, examples, steps=10, batch_size=8, seed=0, callbacks=[Recorder(None, 10)])


def test_the_recorder_writes_losses_and_learning_rates_at_their_steps(tmp_path: Path) -> None:
    model, _, examples = make("transformer", warmup=4)
    about = {"name": "x", "tags": {}, "parameters": {}, "config": {}, "datasets": [], "environment": {}}
    record = Record(tmp_path, about)
    shown: list[int] = []
    fit(model, examples, steps=10, batch_size=8, seed=0, callbacks=[Recorder(record, 10, shown.append)])
    lines = record.read()
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert all({"loss", "learning_rate_0_0", "learning_rate_0_1"} <= line["values"].keys() for line in lines)
    rates = [line["values"]["learning_rate_0_0"] for line in lines]
    assert rates.index(max(rates)) == 3  # the scheduler has stepped once more: warm-up 4 peaks there
    assert shown[-1] == 10


def test_fingerprints_change_with_values_and_file_contents(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text("a = 1")
    first = fingerprint({"x": 1}, path)
    assert first == fingerprint({"x": 1}, path)
    assert first != fingerprint({"x": 2}, path)
    path.write_text("a = 2")
    assert first != fingerprint({"x": 1}, path)


def test_a_record_opened_again_goes_on_and_rewinds_to_the_checkpoint(tmp_path: Path) -> None:
    about = {"name": "x", "tags": {}, "parameters": {}, "config": {}, "datasets": [], "environment": {}}
    record = Record(tmp_path, about)
    for step in (1, 2, 3):
        record.log(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "val')  # the process died in the middle of a line
    again = Record(tmp_path, about)
    assert again.about["id"] == record.about["id"]
    again.rewind(2)
    assert [line["step"] for line in again.read()] == [1, 2]


def test_values_that_are_not_finite_become_a_tag_and_valid_json(tmp_path: Path) -> None:
    about = {"name": "x", "tags": {}, "parameters": {}, "config": {}, "datasets": [], "environment": {}}
    record = Record(tmp_path, about)
    record.log(5, {"loss": float("inf"), "kl": 1.0})
    assert record.read()[0]["values"] == {"kl": 1.0}
    assert json.loads((tmp_path / "run.json").read_text())["tags"]["nonfinite"] == "step 5: loss"
