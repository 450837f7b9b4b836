"""MLflow's share of a training's wall time."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback

from pipeline import artifacts
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record
from pipeline.history.recorder import Recorder
from pipeline.kinds import read_fields
from pipeline.weights import save_model
from speed.timing import HERE, Row, summarize, time_it
from speed.trainings import LENGTH, describe, make, make_folder, train


def measure(steps: int = LENGTH) -> Iterator[Row]:
    """MLflow's share of a training's wall time, both from the record's opening to the end of MLflow's run.

    Each training is a process, as a stage is: MLflow imports much when it is first used. All three write to one store,
    which the first one makes. Processor time of MLflow's threads counts as if the training had stood still for it, and
    at the end, when the training waits for them, wall time. With and without them in turn, as the other rows do it,
    differ by less than this machine's noise.
    """
    with make_folder() as folder:
        times = [time_tracking(Path(folder), str(index), steps) for index in range(3)]
    spent = [found["start"] + found["steps"] + found["close"] for found in times]
    shares = [part / found["wall"] for part, found in zip(spent, times, strict=True)]
    middle = {name: statistics.median(found[name] for found in times) for name in times[0]}
    detail = (
        f"{middle['start']:.2g} s until the run is open and {middle['close']:.2g} s at the end, with the model, "
        f"whatever the length; {middle['steps'] / middle['between']:.2g} of the time between; not counted: "
        f"{middle['record']:.2g} s for the record's lines, {time_import():.2g} s to import MLflow"
    )
    title = f"MLflow's seconds, start and end included, over the wall time of a language model's {steps:,} steps"
    seconds = statistics.median(spent), middle["wall"]
    yield summarize("tracking_share", title, "<= 0.01", shares, detail, count=f"{steps:,} steps", seconds=seconds)


def time_tracking(store: Path, name: str, steps: int) -> dict[str, float]:
    """Train in a process of its own that writes to the MLflow store in a folder; return what `track` found."""
    command = [sys.executable, "-c", f"from speed.tracking import track; track({str(store / name)!r}, {steps})"]
    mine = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    subprocess.run(command, cwd=HERE, env=mine | {"DVC_ROOT": str(store)}, check=True)
    return artifacts.read_json(store / name / "spent.json")


def track(folder: str, steps: int) -> None:
    """Train as the stage does, but for what previews compute, and write down what MLflow takes.

    In spent.json, seconds: `start` of MLflow until its run is open, `steps` of it from then to the last step, which are
    `between` apart, `close` of it at the end; `wall` from the record's opening on, `record` of writing lines.
    """
    state = Path(folder)
    model, examples = make("transformer", steps=steps)
    began = time.perf_counter()
    record = TimedRecord(state / "record", describe(model))
    sync = MlflowSync(record).start()
    spent = Spent(sync)
    recorder = Recorder(record, steps, lambda step: record.exhibit("samples", step, ".txt", 400 * b"x"))
    train(model, examples, steps, [recorder, spent], state)
    tokenizer = artifacts.read_json(artifacts.PREPARED / "shakespeare" / "tokenizer.json")
    fields = read_fields("shakespeare")
    save_model(state / "model", "transformer", model, model.config, fields, tokenizer=tokenizer)
    record.finish("FINISHED")
    close = time_it(partial(sync.finish, model=state / "model"))
    wall = time.perf_counter() - began
    assert not sync.failed
    (opened, start), (ended, whole) = spent.seen  # one, if the training ended before the run was open
    found = {"start": start, "steps": whole - start, "between": ended - opened, "close": close, "wall": wall}
    artifacts.write_json(state / "spent.json", found | {"record": record.seconds})


def time_import() -> float:
    """Time what importing MLflow adds to a training's process; the median of three."""
    code = "import time, pipeline.training; start = time.perf_counter(); import pipeline.history.mlflow_sync; "
    command = [sys.executable, "-c", code + "print(time.perf_counter() - start)"]
    found = [subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, check=True).stdout for _ in range(3)]
    return statistics.median(map(float, found))


class TimedRecord(Record):
    """A record that knows how long the training waited for it."""

    seconds = 0.0

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add up the time of writing a line."""
        self.seconds += time_it(partial(super().log, step, values))


class Spent(Callback):
    """What MLflow's threads had taken when its run was open, and at the training's end, with the time of each."""

    def __init__(self, sync: MlflowSync) -> None:
        self.sync = sync
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Read the clocks where it counts."""
        if index + 1 == trainer.num_training_batches or (self.sync.run_id and not self.seen):
            clocks = [time.pthread_getcpuclockid(thread.ident) for thread in self.sync.threads if thread.ident]
            self.seen.append((time.perf_counter(), sum(map(time.clock_gettime, clocks))))
