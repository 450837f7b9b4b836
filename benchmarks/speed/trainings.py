"""Trains the models of params.yaml by the pipeline's loop and by plain PyTorch, and times the steps."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback
from ruamel.yaml import YAML
from torch import nn

from pipeline import artifacts, plugins
from pipeline.batches import Examples, Steps
from pipeline.history.record import describe_environment, describe_lineage
from pipeline.history.recorder import Recorder
from pipeline.kinds import read_fields
from pipeline.training import fit
from speed.timing import HERE

SKIPPED = 10  # steps of a training that are not timed: allocator, threads
LENGTH = 2400  # steps of lm_shakespeare_0
SMALL = {"layers": 2, "batch_size": 4}  # the language model at about 20 ms per step on two threads of a Xeon
LARGE = {"layers": 6, "heads": 6, "width": 192, "dropout": 0.1}  # the language model of 30 minutes


def make(kind: str, seed: int = 0, **changes: Any) -> tuple[Any, Examples]:
    """Return a model of params.yaml (of the main project, if this one has none) and its training data."""
    yaml = YAML(typ="safe", pure=True)
    sections = {**yaml.load(HERE.parent / "params.yaml")["models"], **yaml.load(HERE / "params.yaml")["models"]}
    module = plugins.load("models", kind)
    config = module.Config.model_validate({**sections[kind], **changes})
    data = "shakespeare" if kind == "transformer" else "digits"
    split = artifacts.read_split(data, "train")
    examples = plugins.load("kinds", artifacts.read_manifest(data)["kind"]).examples(split, config, seed)
    return module.Model(config, read_fields(data), seed), examples


class Clock(Callback):
    """Seconds from step SKIPPED to the last one."""

    seconds = 0.0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Look at the time where it counts."""
        if index + 1 == SKIPPED:
            self.started = time.perf_counter()
        elif index + 1 == trainer.num_training_batches:
            self.seconds = time.perf_counter() - self.started


def time_pipeline(
    kind: str, steps: int, callbacks: list[Callback] | None = None, state: Path | None = None, **changes: Any
) -> float:
    """Train by the pipeline's own loop; return the seconds from step SKIPPED on."""
    model, examples = make(kind, steps=steps, **changes)
    clock = Clock()
    train(model, examples, steps, [*([Recorder(None, steps)] if callbacks is None else callbacks), clock], state)
    return clock.seconds


def train(model: Any, examples: Examples, steps: int, callbacks: list[Callback], state: Path | None = None) -> None:
    """Call the pipeline's own loop as its stages do."""
    fit(
        model,
        examples,
        steps=steps,
        batch_size=model.config.batch_size,
        seed=0,
        clip_norm=getattr(model.config, "clip_norm", None),
        state=state,
        callbacks=callbacks,
    )


def describe(model: Any) -> dict[str, Any]:
    """Return what a record is opened with, as the stage `train` has it."""
    config = model.config.model_dump()
    about = {"parameters": {f"model.{name}": value for name, value in config.items()}, "config": {"model": config}}
    return {"name": "speed", "tags": describe_lineage(), "datasets": [], "environment": describe_environment(), **about}


def make_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a new folder on the disk where trainings have their state: another one may be memory."""
    artifacts.STATE.mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(dir=artifacts.STATE.resolve(), prefix="speed-")


def train_bare(model: Any, examples: Examples, steps: int, *, compile_it: bool = False) -> Iterator[float]:
    """Train a model of one optimizer by a loop of plain PyTorch; yields the loss of each step."""
    found = model.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    if compile_it:
        torch.compiler.reset()  # each training compiles again: after a few, PyTorch would give up
    loss_of = torch.compile(model.loss, dynamic=False) if compile_it else model.loss
    for batch in Steps(examples, steps=steps, batch_size=model.config.batch_size, seed=0):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), model.config.clip_norm)
        optimizer.step()
        schedule.step()
        yield loss.detach()


def time_bare(steps: int, *, compile_it: bool = False, whole: bool = False, **changes: Any) -> float:
    """Time the plain loop, from step SKIPPED on or as a whole."""
    loop = train_bare(*make("transformer", steps=steps, **changes), steps, compile_it=compile_it)
    start = time.perf_counter()
    for index, _ in enumerate(loop, 1):
        if index == SKIPPED and not whole:
            start = time.perf_counter()
    return time.perf_counter() - start


def count_millions(model: Any) -> str:
    """Return the millions of a language model's parameters, with one digit after the point."""
    return f"{sum(parameter.numel() for parameter in model.network.parameters()) / 1e6:.1f}"
