"""The progress of a training: a bar on a terminal, elsewhere a line every half minute, which a log file can hold."""

import sys
import time
from datetime import timedelta
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar

SECONDS_BETWEEN_LINES = 30.0


def choose(steps: int) -> ProgressBar:
    """Return Lightning's bar if standard output is a terminal, else the lines."""
    return TQDMProgressBar(refresh_rate=20) if sys.stdout.isatty() else ProgressLines(steps)


class ProgressLines(ProgressBar):
    """Prints step, losses, steps per second since the last line, and the time that is left at that pace."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.is_silent = False
        self.said = 0.0
        self.said_step = 0

    def disable(self) -> None:
        """Say nothing: Lightning asks it of all processes but the first."""
        self.is_silent = True

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        """Start the clock at the first step, which a resumed training has somewhere in the middle."""
        if not self.said:
            self.said, self.said_step = time.monotonic(), index

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Print a line if one is due; only then are the losses read, for which a GPU has to be waited for."""
        passed = time.monotonic() - self.said
        if self.is_silent or passed < SECONDS_BETWEEN_LINES:
            return
        step = index + 1
        pace = (step - self.said_step) / passed
        losses = [f"{name} {float(value):.4g}" for name, value in outputs.items() if name.endswith("loss")]
        left = timedelta(seconds=round((self.steps - step) / pace))
        print(", ".join([f"step {step} of {self.steps}", *losses, f"{pace:.3g} steps/s, {left} left"]), flush=True)
        self.said, self.said_step = time.monotonic(), step
