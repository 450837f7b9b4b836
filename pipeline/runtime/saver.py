"""Saves a training's state by the clock and when a signal asks to stop."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from pipeline.runtime import checkpoints, preemption, writer
from pipeline.runtime.preemption import PreemptedError

ASK_SECONDS = 1.0  # between questions among processes
REPEATS = 5.0  # seconds in which a repeated signal is the same wish: torchrun and timeout send it twice


class Saver(Callback):
    """Saves a checkpoint every `seconds`, after the last step, and when a signal asks to stop, which ends the training.

    The last one is for a result that is not accepted, or not written: the training then ends at once the next time.

    ModelCheckpoint's timer never fires with two optimizers, and Lightning's own SIGTERM ends with status 0.
    """

    def __init__(self, folder: Path, seconds: float, start: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.start = start
        self.saved = self.asked = time.monotonic()
        self.asked_step = self.ask_step = 0
        self.received: int | None = None
        self.received_at = 0.0
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the signals over, after Lightning has; all processes have found what they resume from."""
        self.saved = time.monotonic()
        if trainer.is_global_zero:
            checkpoints.discard_after(self.folder, self.start)
        if threading.current_thread() is threading.main_thread():
            self.handlers = preemption.catch(self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        """Note the signal; after some seconds the same one again has its usual effect."""
        if self.received is None:
            self.received, self.received_at = number, time.monotonic()
        elif time.monotonic() - self.received_at > REPEATS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Save where it is due; all processes save together or none."""
        step = index + 1
        due, stop = time.monotonic() - self.saved > self.seconds, self.received is not None
        if trainer.world_size > 1:
            due, stop = self._ask(trainer, module, step, due=due, stop=stop)
        saved = False
        if due or stop or step == trainer.num_training_batches:
            saved = writer.save(trainer, self.folder, step)
            self.saved = time.monotonic()
        if stop and step < trainer.num_training_batches:
            name = signal.Signals(self.received).name if self.received else "a signal to another process"
            state = "the state is saved" if saved else "the state could not be saved, an earlier one stays"
            msg = f"{name} at step {step}: {state}; the same command goes on from there"
            raise PreemptedError(msg)

    def _ask(self, trainer: Trainer, module: LightningModule, step: int, *, due: bool, stop: bool) -> tuple[bool, bool]:
        """Ask all processes, about once a second, at steps on which all of them agreed the last time."""
        if step < self.ask_step:
            return False, False
        pace = (time.monotonic() - self.asked) / max(1, step - self.asked_step)
        flags = torch.tensor([float(due), float(stop), pace], device=module.device)
        any_due, any_stop, slowest = trainer.strategy.reduce(flags, reduce_op="max").tolist()
        self.asked, self.asked_step = time.monotonic(), step
        self.ask_step = step + max(1, int(ASK_SECONDS / max(slowest, 1e-6)))
        return bool(any_due), bool(any_stop)

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
