"""Fits a LightningModule: hardware from the environment, resume state outside DVC's outputs, a record of the run.

Hardware is set by environment variables and never in params.yaml, so that DVC does not retrain when the machine
changes: PIPELINE_ACCELERATOR, PIPELINE_DEVICES, PIPELINE_NODES, PIPELINE_STRATEGY, PIPELINE_PRECISION (as Lightning's
Trainer takes them; default: all GPUs of the machine, else the CPU, in float32).
"""

import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar

from pipeline.data.loading import Data, Examples
from pipeline.record import Record

STATE = Path(".state")
CHECKPOINT = "last.ckpt"
LOGGED_LINES = 200
PREVIEWS = 8
NOISE = "litlogger|`weights_only` was not set|TPU available"


class NonFiniteError(RuntimeError):
    """A loss stopped being finite; the message names the step and the values."""


def fingerprint(*parts: Any) -> str:
    """Hash all that a training depends on (JSON values and paths of files) to 16 hex digits: its state's folder."""
    content = [part.read_bytes().hex() if isinstance(part, Path) else part for part in parts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def get_rank() -> int:
    """Return this process's rank before Lightning has started, from what torchrun, SLURM or Lightning itself set."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)


def resume_step(state: Path) -> int:
    """Return the step that the checkpoint in `state` reached, 0 without one."""
    path = state / CHECKPOINT
    if not path.exists():
        return 0
    loops = torch.load(path, weights_only=True, map_location="cpu")["loops"]
    return int(loops["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"])


class Recorder(Callback):
    """Writes about 200 lines of values and 8 previews to the record; stops at a value that is not finite."""

    def __init__(self, record: Record | None, steps: int, preview: Callable[[int], None] | None = None) -> None:
        self.record = record
        self.steps = steps
        self.every = max(1, steps // LOGGED_LINES)
        self.preview_every = max(1, steps // PREVIEWS)
        self.preview = preview

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Read the step's values where a line is due: `.item()` waits for the device, so not at every step."""
        step = index + 1
        if step % self.every and step != self.steps:
            return
        values = {key: float(value) for key, value in outputs.items()}
        if broken := {key: value for key, value in values.items() if not math.isfinite(value)}:
            msg = f"step {step}: {broken} is not finite; lower the learning rate or the penalties' weights"
            raise NonFiniteError(msg)
        if self.record is None or not trainer.is_global_zero:
            return
        for position, optimizer in enumerate(trainer.optimizers):
            for group, settings in enumerate(optimizer.param_groups):
                values[f"learning_rate_{position}_{group}"] = settings["lr"]
        self.record.log(step, values)
        if self.preview is not None and (step % self.preview_every < self.every or step == self.steps):
            was_training = module.training
            self.preview(step)
            module.train(was_training)


def fit(
    model: LightningModule,
    examples: Examples,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    clip_norm: float | None = None,
    state: Path | None = None,
    callbacks: list[Callback] | None = None,
) -> Trainer:
    """Train for `steps` batches; with `state`, resume from its checkpoint and keep one there about once a minute."""
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):  # advertising, and a default we set
        logging.getLogger(f"pytorch_lightning.{name}").addFilter(lambda entry: not re.search(NOISE, str(entry.msg)))
    start = resume_step(state) if state else 0
    if start:
        print(f"resuming at step {start} of {steps} from {state}")
    extra: list[Callback] = list(callbacks or [])
    if state:
        extra.append(Minutely(state))
    data = Data(examples, steps=steps, batch_size=batch_size, seed=seed, start=start)
    strategy = os.environ.get("PIPELINE_STRATEGY", "auto")
    trainer = _make_trainer(clip_norm, extra, strategy)
    if trainer.world_size > 1 and not model.automatic_optimization and strategy in {"auto", "ddp"}:
        # Two optimizers: each backward leaves the other network's parameters without gradients.
        trainer = _make_trainer(clip_norm, extra, "ddp_find_unused_parameters_true")
    trainer.fit(model, data, ckpt_path=str(state / CHECKPOINT) if state and start else None, weights_only=True)
    return trainer


class Minutely(Callback):
    """Saves a checkpoint once a minute, whatever the number of optimizers (ModelCheckpoint's timer needs one)."""

    def __init__(self, folder: Path, seconds: float = 60) -> None:
        self.path = folder / CHECKPOINT
        self.seconds = seconds
        self.saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Save under another name, then rename: a reader never sees half a file."""
        due = time.monotonic() - self.saved > self.seconds
        if trainer.world_size > 1:  # all save together or none; asked seldom, for asking waits for every process
            due = index % 50 == 0 and bool(trainer.strategy.broadcast(due))
        if due:
            partial = self.path.with_suffix(".tmp")
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                os.replace(partial, self.path)
            self.saved = time.monotonic()


def _make_trainer(clip_norm: float | None, callbacks: list[Callback], strategy: str) -> Trainer:
    environment = os.environ.get
    devices = environment("PIPELINE_DEVICES", "auto")
    return Trainer(
        accelerator=environment("PIPELINE_ACCELERATOR", "auto"),
        devices=int(devices) if devices.isdigit() else devices,
        num_nodes=int(environment("PIPELINE_NODES", "1")),
        strategy=strategy,
        precision=environment("PIPELINE_PRECISION", "32-true"),  # type: ignore[arg-type]
        gradient_clip_val=clip_norm,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        deterministic="warn" if torch.cuda.is_available() else None,
        callbacks=[*callbacks, TQDMProgressBar(refresh_rate=20)],
    )
