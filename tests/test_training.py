"""Training: resume bit for bit, non-finite losses, values at the right steps."""

import contextlib
import enum
import json
import math
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch._dynamo.utils import counters

from pipeline import params, plugins, training
from pipeline.artifacts import ArtifactError
from pipeline.batches import Examples, Rows
from pipeline.history.record import Record, describe_environment
from pipeline.history.recorder import Recorder
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.text import Windows
from pipeline.kinds.text import make_fields as text_fields
from pipeline.models.transformer import list_missing_tools
from pipeline.runtime import checkpoints, writer
from pipeline.runtime.environment import HardwareError
from pipeline.runtime.hardware import has_batch_norm
from pipeline.runtime.preemption import PreemptedError
from pipeline.training import Guard, NonFiniteError, fingerprint, fit

SPECS: dict[str, Any] = {
    "images": image_fields((1, 28, 28), 10),
    "text": text_fields(21),  # odd: two processes that share the weights get unequal parts
}
CHANGES: dict[str, dict[str, Any]] = {
    "gan": {"generator_width": 4, "discriminator_width": 4},
    "vae": {"width": 4, "hidden": 16, "dropout": 0.2},
    "codes": {"width": 4, "prior_width": 4, "kl_warmup": 8, "warmup": 2},
    "transformer": {"layers": 1, "width": 16, "heads": 2, "context": 8, "dropout": 0.2, "ema": 0.9},
}
CHANGES["adapters"] = CHANGES["transformer"] | {"lora_rank": 2}


def make(name: str, **changes: Any) -> tuple[Any, Any, Examples]:
    """Build a small model of params.yaml's kind, with the shipped losses and optimizers; also one with adapters."""
    model = "transformer" if name == "adapters" else name
    config = params.load().models[model]
    config = config.model_validate({**config.model_dump(), "batch_size": 8, "steps": 10} | CHANGES[name] | changes)
    module = plugins.load("models", model)
    generator = torch.Generator().manual_seed(0)
    if module.LEARNS == ("text",):
        examples: Examples = Windows(torch.randint(20, (300,), generator=generator), config.context, 0)
    else:
        images = torch.randint(256, (36, 1, 28, 28), dtype=torch.uint8, generator=generator)
        examples = Rows({"images": images, "labels": torch.arange(36) % 10})
    made = module.Model(config, SPECS["text" if module.LEARNS == ("text",) else "images"], seed=0)
    if name == "adapters":
        for weight in made.network.parameters():  # as of a trained start: fresh layers end in zeros, which learn alone
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
        made.begin(has_start=True)
    return made, config, examples


def train(name: str, *, steps: int = 10, changes: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Trainer]:
    model, config, examples = make(name, **changes or {})
    return model, fit(model, examples, steps=steps, batch_size=8, seed=0, clip_norm=config.clip_norm, **options)


def run(name: str, **options: Any) -> Any:
    return train(name, **options)[0]


def make_record(folder: Path) -> Record:
    return Record(folder, {"name": "x", "tags": {}, "parameters": {}, "config": {}, "datasets": [], "environment": {}})


class Crash(Callback):
    """Raises at a step, after the checkpoint of that step was written."""

    def __init__(self, step: int, folder: Path) -> None:
        self.step = step
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if index + 1 == self.step:
            assert writer.save(trainer, self.folder, self.step)
            msg = "crash"
            raise InterruptedError(msg)


class Watch(Callback):
    """Keeps what each step saw: its examples, and the global generators of PyTorch, NumPy and Python after it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        content = {key: tensor.clone() for key, tensor in batch.items()}
        self.seen.append([index, content, torch.get_rng_state(), list(np.random.get_state()), random.getstate()])  # noqa: NPY002


def describe(model: Any, trainer: Trainer) -> dict[str, Any]:
    """All that a training has become: weights, averages and buffers, every optimizer and schedule."""
    return {
        "weights": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedules": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
    }


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Names of the values in nested containers that are not equal to the last bit."""
    if isinstance(first, torch.Tensor):
        return [] if first.device == second.device and torch.equal(first, second) else [name]
    if isinstance(first, np.ndarray):
        return [] if np.array_equal(first, second) else [name]
    if isinstance(first, dict):
        pairs = [(key, first[key], second[key]) for key in first] if first.keys() == second.keys() else None
    elif isinstance(first, list | tuple):
        pairs = [(key, *both) for key, both in enumerate(zip(first, second, strict=True))]
    else:
        return [] if first == second else [name]
    return [name] if pairs is None else [found for key, a, b in pairs for found in differences(a, b, f"{name}.{key}")]


@pytest.mark.parametrize("step", [1, 5, 9, 10])
@pytest.mark.parametrize("name", ["gan", "vae", "codes", "transformer", "adapters"])
@pytest.mark.fault(1, 8, 23)
def test_a_crashed_training_ends_with_the_bits_of_an_uninterrupted_one(name: str, step: int, tmp_path: Path) -> None:
    """With 36 images and batches of 8 an epoch ends within step 5 and with step 9; step 10 is the last.

    There are no loader's workers, whose state could be lost: examples are in memory, or mapped into it.
    """
    watched, again = Watch(), Watch()
    straight = train(name, callbacks=[watched])
    with pytest.raises(InterruptedError):
        train(name, callbacks=[Crash(step, tmp_path)])
    found = checkpoints.find(tmp_path)
    assert found
    assert found[1] == step
    for spoil in (torch.manual_seed, np.random.seed, random.seed):  # whatever the new process drew before
        spoil(99)
    resumed = train(name, state=tmp_path, callbacks=[again])
    assert len(watched.seen) == 10
    assert differences(watched.seen[step:], again.seen) == []
    assert differences(describe(*straight), describe(*resumed)) == []


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING := list_missing_tools()), reason=f"no {', '.join(MISSING)}")
def test_a_compiled_training_resumes_with_its_bits_and_stays_near_the_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_ACCELERATOR", "cpu")
    compiled: dict[str, Any] = {"compile": True}  # dropout included, which is drawn otherwise than in eager mode
    counters.clear()
    straight = train("transformer", changes=compiled)
    assert counters["stats"]["unique_graphs"] == 1  # one graph, compiled once
    with pytest.raises(InterruptedError):
        train("transformer", changes=compiled, callbacks=[Crash(5, tmp_path)])
    resumed = train("transformer", changes=compiled, state=tmp_path)
    assert differences(describe(*straight), describe(*resumed)) == []
    one, other = (train("transformer", changes={"dropout": 0.0} | mode)[0].state_dict() for mode in (compiled, {}))
    torch.testing.assert_close(dict(one), dict(other), rtol=0, atol=1e-4)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ACCELERATOR", "cpu")
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(
        HardwareError, match=r"compile: true needs a C\+\+ compiler, no-such-compiler or what CXX names"
    ):
        train("transformer", changes={"compile": True})


def test_the_comparison_of_trainings_sees_one_bit() -> None:
    first = {"a": [torch.zeros(3), 1], "b": (np.ones(2),)}
    second = {"a": [torch.tensor([0.0, 0.0, 1e-45]), 1], "b": (np.ones(2),)}
    assert differences(first, first) == []
    assert differences(first, second) == [".a.0"]


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


@pytest.mark.fault(0, 11)
def test_a_signal_that_is_repeated_at_once_is_the_same_wish(tmp_path: Path) -> None:
    class Twice(Signal):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            super().on_train_batch_start(trainer, module, batch, index)
            super().on_train_batch_start(trainer, module, batch, index)  # as torchrun and `timeout` do

    with pytest.raises(PreemptedError, match="SIGTERM at step 4: the state is saved"):
        run("vae", state=tmp_path, callbacks=[Twice(4, signal.SIGTERM)])


@pytest.mark.fault(0, 4)
def test_a_stop_whose_state_cannot_be_saved_does_not_say_that_it_was(tmp_path: Path) -> None:
    class Block(Signal):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            super().on_train_batch_start(trainer, module, batch, index)
            if index + 1 == self.step:
                (tmp_path / "partial.tmp").mkdir()

    with pytest.raises(PreemptedError, match="SIGTERM at step 4: the state could not be saved, an earlier one stays"):
        run("vae", state=tmp_path, callbacks=[Block(4, signal.SIGTERM)])


def test_a_signal_in_the_last_step_lets_the_training_finish(tmp_path: Path) -> None:
    finished, straight = run("vae", state=tmp_path, callbacks=[Signal(10, signal.SIGTERM)]), run("vae")
    assert all(torch.equal(tensor, straight.state_dict()[key]) for key, tensor in finished.state_dict().items())


@pytest.mark.parametrize(
    "precision",
    [
        "bf16-mixed",
        pytest.param("16-mixed", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")),
    ],
)
@pytest.mark.parametrize("name", ["gan", "vae", "transformer"])
def test_a_training_in_half_precision_stays_near_one_in_single(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = run(name).state_dict()
    monkeypatch.setenv("PIPELINE_PRECISION", precision)
    half = run(name).state_dict()
    gaps = {key: float((half[key].double() - value.double()).abs().max()) for key, value in single.items()}
    assert max(gaps.values()) > 1e-6
    assert [key for key, gap in gaps.items() if not gap < 0.05] == []


class Poison(Callback):
    """Makes one gradient infinite after the backward pass of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx + 1 == self.step:
            next(p for p in module.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf


@pytest.mark.parametrize("name", ["gan", "vae", "transformer"])
@pytest.mark.fault(2)
def test_a_gradient_that_is_not_finite_stops_before_the_update_and_names_step_and_weight(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_ACCELERATOR", "cpu")  # a GPU is not asked at every step
    model, config, examples = make(name)
    clip = config.model_dump().get("clip_norm")
    with pytest.raises(NonFiniteError, match=r"step 3: the gradient of [\w.]+ is not finite"):
        fit(model, examples, steps=10, batch_size=8, seed=0, clip_norm=clip, callbacks=[Poison(3)])
    assert writer.find_broken(model.state_dict()) == ""


@pytest.mark.parametrize("name", ["gan", "vae", "transformer"])
@pytest.mark.fault(2)
def test_a_loss_that_is_not_finite_stops_the_training_with_step_and_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_ACCELERATOR", "cpu")
    model, _, examples = make(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"step 1: .* not finite"):
        fit(model, examples, steps=10, batch_size=8, seed=0, callbacks=[Recorder(None, 10)])


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.fault(2)
def test_an_infinite_loss_with_finite_gradients_stops_the_training_between_its_lines(
    waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU nobody waits for the answer at each step: it is read where a line is due."""
    model, _, examples = make("transformer")
    loss = model.loss
    model.loss = lambda batch: loss(batch) + (torch.inf if model.trainer.fit_loop.epoch_loop.batch_idx == 4 else 0)
    monkeypatch.setattr(training, "Guard", lambda steps: Guard(steps, waits=waits))
    message = "step 5: the loss is inf, which is not finite" if waits else "of the 4 steps to step 8 is not finite"
    with pytest.raises(NonFiniteError, match=message):
        fit(model, examples, steps=800, batch_size=8, seed=0, callbacks=[Recorder(None, 800)])


def test_the_recorder_writes_losses_and_learning_rates_at_their_steps(tmp_path: Path) -> None:
    model, _, examples = make("transformer", warmup=4)
    record = make_record(tmp_path)
    shown: list[int] = []
    fit(model, examples, steps=10, batch_size=8, seed=0, callbacks=[Recorder(record, 10, shown.append)])
    lines = record.read()
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert all({"loss", "learning_rate_0_0", "learning_rate_0_1"} <= line["values"].keys() for line in lines)
    rates = [line["values"]["learning_rate_0_0"] for line in lines]
    assert rates.index(max(rates)) == 4  # warm-up 4: the fifth update has the peak
    assert shown[-1] == 10


def test_the_recorder_writes_the_learning_rate_that_the_step_used(tmp_path: Path) -> None:
    """Of the two kinds of schedule: of Lightning after the step, and by hand before it."""
    for name, key in (("vae", "learning_rate"), ("gan", "generator_learning_rate")):
        model, config, examples = make(name, final_learning_rate=0.0, **({"warmup": 0} if name == "vae" else {}))
        record = make_record(tmp_path / name)
        fit(model, examples, steps=10, batch_size=8, seed=0, callbacks=[Recorder(record, 10)])
        rates = [line["values"]["learning_rate_0_0"] for line in record.read()]
        peak = getattr(config, key)
        assert rates == pytest.approx([peak * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)])


@pytest.mark.fault(10)
@pytest.mark.parametrize("name", ["gan", "vae"])
def test_checkpoints_come_by_the_clock_with_one_optimizer_and_with_two(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []

    class Slow(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            time.sleep(0.06)
            saved.extend(int(path.stem[5:]) for path in checkpoints.list_steps(tmp_path)[:1])

    monkeypatch.setenv("PIPELINE_CHECKPOINT_SECONDS", "0.1")
    train(name, steps=10, state=tmp_path, callbacks=[Slow()])
    assert 3 < len(set(saved)) < 10


@pytest.mark.fault(24)
def test_an_exception_in_a_preview_leaves_average_and_weights_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preview(step: int) -> None:
        if step == 7:
            msg = "the preview failed"
            raise InterruptedError(msg)

    monkeypatch.setenv("PIPELINE_CHECKPOINT_SECONDS", "1e-6")
    with pytest.raises(InterruptedError):
        run("transformer", state=tmp_path, callbacks=[Recorder(make_record(tmp_path / "record"), 10, preview)])
    found = checkpoints.find(tmp_path)
    assert found
    assert found[1] == 6
    assert differences(run("transformer").state_dict(), run("transformer", state=tmp_path).state_dict()) == []


@pytest.mark.fault(28)
def test_the_number_of_threads_is_recorded_and_changes_the_weights_by_rounding_alone() -> None:
    before, weights = torch.get_num_threads(), {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert describe_environment()["threads"] == str(threads)
            weights[threads] = train("vae", steps=4)[0].state_dict()
    finally:
        torch.set_num_threads(before)
    for key, tensor in weights[1].items():
        torch.testing.assert_close(weights[2][key], tensor, rtol=0, atol=1e-5, msg=key)


@pytest.mark.fault(29)
def test_models_with_batch_statistics_are_known() -> None:
    assert [name for name in ("gan", "vae", "transformer") if has_batch_norm(make(name)[0])] == ["gan"]


@pytest.mark.fault(9)
@pytest.mark.parametrize("value", [Path("x"), np.float32(1.5), enum.Enum("Colour", ["RED"]).RED])
def test_values_that_are_not_plain_are_refused_before_the_start(value: Any) -> None:
    with pytest.raises(ArtifactError, match=f"more than plain values.*{type(value).__name__}"):
        fingerprint({"model": {"key": value}})


@pytest.mark.parametrize("name", ["fsdp_cpu_offload", "deepspeed", "model_parallel"])
def test_other_strategies_that_cut_weights_into_parts_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_STRATEGY", name)
    with pytest.raises(HardwareError, match=f"PIPELINE_STRATEGY: {name} cuts weights into parts.*expected fsdp"):
        run("gan")


def test_an_apple_gpu_is_not_taken_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train("vae")[1].accelerator.__class__.__name__ == "CPUAccelerator"


def test_a_float16_training_whose_every_update_is_left_out_is_stopped() -> None:
    guard = Guard(10)
    for scale in (1.0, 2.0**-21):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(()))  # which makes the scale
        trainer: Any = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
        with contextlib.nullcontext() if scale == 1 else pytest.raises(NonFiniteError, match="step 4: no gradient is"):
            guard.on_train_batch_end(trainer, torch.nn.Module(), {}, {}, 3)  # type: ignore[arg-type]


def test_fingerprints_change_with_values_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint({"x": 1}, "digest")
    assert first == fingerprint({"x": 1}, "digest")
    assert len({first, fingerprint({"x": 2}, "digest"), fingerprint({"x": 1}, "other")}) == 3
    monkeypatch.setattr(training, "version", lambda name: f"another {name}")
    assert first != fingerprint({"x": 1}, "digest")


def test_a_record_opened_again_goes_on_and_rewinds_to_the_checkpoint(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    for step in (1, 2, 3):
        record.log(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "val')  # the process died in the middle of a line
    again = make_record(tmp_path)
    assert again.about["id"] == record.about["id"]
    again.rewind(2)
    assert [line["step"] for line in again.read()] == [1, 2]


def test_values_that_are_not_finite_become_a_tag_and_valid_json(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    record.log(5, {"loss": float("inf"), "kl": 1.0})
    assert record.read()[0]["values"] == {"kl": 1.0}
    assert json.loads((tmp_path / "run.json").read_text())["tags"]["nonfinite"] == "step 5: loss"
