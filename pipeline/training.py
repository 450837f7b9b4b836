"""Fits a LightningModule: hardware from the environment, resume state outside DVC's outputs, a record of the run.

Hardware is set by environment variables and never in params.yaml, so that DVC does not retrain when the machine
changes: PIPELINE_ACCELERATOR, PIPELINE_DEVICES, PIPELINE_NODES, PIPELINE_STRATEGY, PIPELINE_PRECISION (as Lightning's
Trainer takes them; default: all GPUs of the machine, else the CPU, in float32), PIPELINE_CHECKPOINT_SECONDS (60).
"""

import hashlib
import json
import logging
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar

from pipeline import checkpoints
from pipeline.data.loading import Data, Examples
from pipeline.preemption import PreemptedError
from pipeline.record import Record

STATE = Path(".state")
EVERY_FEW = 10  # steps between questions among processes
LOGGED_LINES = 200
PREVIEWS = 8
NOISE = "litlogger|`weights_only` was not set|TPU available"


class NonFiniteError(RuntimeError):
    """A loss or gradient stopped being finite; the message names the step and the value. Nothing was updated by it."""


def fingerprint(*parts: Any) -> str:
    """Hash all that a training depends on (JSON values and paths of files) to 16 hex digits: its state's folder."""
    content = [part.read_bytes().hex() if isinstance(part, Path) else part for part in parts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def get_rank() -> int:
    """Return this process's rank before Lightning has started, from what torchrun, SLURM or Lightning itself set."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)


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
    found = checkpoints.find(state) if state else None
    start = found[1] if found else 0
    if found:
        print(f"resuming at step {start} of {steps} from {found[0]}")
    extra: list[Callback] = [Guard(), *(callbacks or [])]
    if state:
        state.mkdir(parents=True, exist_ok=True)
        checkpoints.require_space(state, model)
        extra.append(Saver(state, float(os.environ.get("PIPELINE_CHECKPOINT_SECONDS", "60"))))
    data = Data(examples, steps=steps, batch_size=batch_size, seed=seed, start=start)
    strategy = os.environ.get("PIPELINE_STRATEGY", "auto")
    trainer = _make_trainer(clip_norm, extra, strategy)
    if trainer.world_size > 1 and not model.automatic_optimization and strategy in {"auto", "ddp"}:
        # Two optimizers: each backward leaves the other network's parameters without gradients.
        trainer = _make_trainer(clip_norm, extra, "ddp_find_unused_parameters_true")
    trainer.fit(model, data, ckpt_path=str(found[0]) if found else None, weights_only=True)
    return trainer


class Guard(Callback):
    """Stops before an update by a gradient that is not finite.

    On a CPU at every step; elsewhere reading the answer would stop the device at every step, and the Recorder's lines
    and the checkpoints, which are finite or not written, take its place.
    """

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at the norm of every gradient that this optimizer is about to use."""
        if module.device.type != "cpu":
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack(torch._foreach_norm([p.grad for p in parameters]))  # noqa: SLF001
        if bool(norms.isfinite().all()):
            return
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        broken = names[id(parameters[int((~norms.isfinite()).nonzero()[0])])]
        step = trainer.fit_loop.epoch_loop.batch_idx + 1
        msg = f"step {step}: the gradient of {broken} is not finite; lower the learning rate or the penalties' weights"
        raise NonFiniteError(msg)


class Saver(Callback):
    """Saves a checkpoint every `seconds`, and when SIGTERM or Ctrl-C asks to stop: then it ends the training.

    ModelCheckpoint's timer never fires with two optimizers, and Lightning's own SIGTERM ends with status 0.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self.saved = time.monotonic()
        self.received: int | None = None
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the signals over, after Lightning has."""
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}

    def _receive(self, number: int, frame: Any) -> None:
        """Note the signal; the same one again has its usual effect."""
        self.received = number
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Save where it is due; all processes save together or none, and they ask each other every few steps."""
        due, stop = time.monotonic() - self.saved > self.seconds, self.received is not None
        if trainer.world_size > 1:
            if index % EVERY_FEW:
                return
            flags = torch.tensor([float(due), float(stop)], device=module.device)
            due, stop = (bool(flag) for flag in trainer.strategy.reduce(flags, reduce_op="sum"))
        if due or stop:
            checkpoints.save(trainer, self.folder, index + 1)
            self.saved = time.monotonic()
        if stop and index + 1 < trainer.num_training_batches:
            name = signal.Signals(self.received).name if self.received else "a signal to another process"
            msg = f"{name} at step {index + 1}: the state is saved; the same command goes on from there"
            raise PreemptedError(msg)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


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
