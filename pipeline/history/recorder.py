"""Writes a training's values, learning rates and previews to the record while it runs."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from pipeline.history.record import Record
from pipeline.runtime import sharding
from pipeline.training import LOGGED_LINES, NonFiniteError

PREVIEWS = 8  # per training, about: every multiple of the steps between two lines


class Recorder(Callback):
    """Writes about 200 lines of values, averaged over all processes, about 8 previews and one of step 0 to the record.

    `whole` receives the weights of a sharded model before each preview.
    """

    def __init__(
        self,
        record: Record | None,
        steps: int,
        preview: Callable[[int], None] | None = None,
        whole: LightningModule | None = None,
    ) -> None:
        self.record = record
        self.steps = steps
        self.every = max(1, steps // LOGGED_LINES)
        self.preview_every = max(1, steps // PREVIEWS)
        self.preview = preview
        self.whole = whole
        self.rates: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Show what the model makes before its first step; a slider over the steps begins there."""
        if not trainer.global_step:  # else the training resumes
            self._show(0, trainer, module)

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the learning rates of this update: at the batch's end a scheduler has set the next one's."""
        position = next(index for index, known in enumerate(trainer.optimizers) if known is optimizer)
        for group, settings in enumerate(optimizer.param_groups):
            self.rates[f"learning_rate_{position}_{group}"] = settings["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Read the step's values where a line is due: `.item()` waits for the device, so not at every step."""
        step = index + 1
        if step % self.every and step != self.steps:
            return
        values = {key: float(value) for key, value in outputs.items()}
        if trainer.world_size > 1:
            means = trainer.strategy.reduce(torch.tensor(list(values.values()), device=module.device))
            values = dict(zip(values, means.tolist(), strict=True))
        if broken := {key: value for key, value in values.items() if not math.isfinite(value)}:
            msg = f"step {step}: {broken} is not finite; lower the learning rate or the penalties' weights"
            raise NonFiniteError(msg)
        if self.record is not None and trainer.is_global_zero:
            self.record.log(step, values | self.rates)
        if step % self.preview_every < self.every or step == self.steps:
            self._show(step, trainer, module)

    def _show(self, step: int, trainer: Trainer, module: LightningModule) -> None:
        """Write a preview to the record; all processes gather the weights of a sharded model for it."""
        if self.whole is not None:
            sharding.gather(module, self.whole)
        if self.record is None or self.preview is None or not trainer.is_global_zero:
            return
        was_training = module.training
        self.preview(step)
        module.train(was_training)
        if self.whole is not None:
            sharding.release(module, self.whole)
