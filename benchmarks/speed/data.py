"""The share of a training's seconds in which its loop waits for batches."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.profilers import Profiler

from pipeline.history.recorder import Recorder
from speed.timing import Row, summarize
from speed.trainings import SKIPPED, SMALL, time_pipeline


def measure(steps: int = 150) -> Iterator[Row]:
    """The share of a training's seconds in which its loop waits for batches; the other models are in the detail."""
    sizes: dict[str, dict[str, Any]] = {"transformer": SMALL, "gan": {}, "vae": {}}
    times = {kind: [time_waits(kind, steps, **size) for _ in range(5)] for kind, size in sizes.items()}
    shares = {kind: [waited / seconds for waited, seconds in found] for kind, found in times.items()}
    waited, seconds = (statistics.median(part) for part in zip(*times["transformer"], strict=True))
    each = (steps - SKIPPED) / 1000
    detail = f"{waited / each:.2g} ms of {seconds / each:.3g} ms a step; "
    detail += ", ".join(f"{statistics.median(shares[kind]):.2g} of the {kind.upper()}'s" for kind in ("gan", "vae"))
    title = "seconds that the training loop waits for its batches, over the seconds of the training, language model"
    about: dict[str, Any] = {"count": f"{steps - SKIPPED} steps", "seconds": (waited, seconds)}
    yield summarize("data_share", title, "<= 0.05", shares["transformer"], detail, **about)


def time_waits(kind: str, steps: int, **changes: Any) -> tuple[float, float]:
    """Train by the pipeline's own loop; return the seconds of waiting for batches, and all, from step SKIPPED on."""
    waits = Waits()
    seconds = time_pipeline(kind, steps, [Recorder(None, steps), Watched(waits)], **changes)
    return waits.seconds, seconds


class Waits(Profiler):
    """Seconds in which Lightning's loop waited for a batch, which the same thread makes: order, reading, conversion."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def start(self, action_name: str) -> None:
        """Note when a batch is asked for."""
        if action_name.endswith("train_dataloader_next"):
            self.asked = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add up until it is there."""
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self.asked


class Watched(Callback):
    """Hands the trainer a profiler for the steps that a Clock counts."""

    def __init__(self, profiler: Profiler) -> None:
        self.profiler = profiler

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Begin with the step after SKIPPED."""
        if index + 1 == SKIPPED:
            trainer.profiler = self.profiler
