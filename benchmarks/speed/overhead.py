"""A training step by the pipeline with its record, against a plain PyTorch loop."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.history.record import Record
from pipeline.history.recorder import Recorder
from pipeline.training import LOGGED_LINES
from speed.timing import Row, summarize, take_turns
from speed.trainings import LENGTH, SKIPPED, SMALL, describe, make, make_folder, time_bare, time_pipeline


def measure(steps: int = 300) -> Iterator[Row]:
    """Lightning's and the pipeline's share of a step, with the record; MLflow has a row of its own.

    Without the eight previews of a training, which are samples and scores: a plain loop would have to make them, too.
    """
    ways = partial(time_recorded, steps), partial(time_bare, steps, **SMALL)
    ratios, medians = take_turns(ways, 5)
    ours, bare = (1000 * seconds / (steps - SKIPPED) for seconds in medians)
    title = "training step: pipeline with its record, without MLflow, against a plain PyTorch loop, language model"
    detail = f"{ours:.3g} ms a step against {bare:.3g} ms; a line of the record every {LENGTH // LOGGED_LINES} steps"
    count = f"{steps - SKIPPED} steps"
    yield summarize("step_over_bare", title, "<= 1.05", ratios, detail, count=count, seconds=medians)


def time_recorded(steps: int) -> float:
    """Train the small language model with a record and resume state; lines are as rare as in LENGTH steps."""
    with make_folder() as folder:
        state = Path(folder)
        record = Record(state / "record", describe(make("transformer", **SMALL)[0]))
        return time_pipeline("transformer", steps, [Recorder(record, LENGTH)], state, **SMALL)
