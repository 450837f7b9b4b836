"""Finds signs that a training went wrong although every number is finite: collapse, no learning, jumps.

`find_all` is a function of a record's lines, so a resumed training and a later reader find the same alarms. Signs that
need samples, such as their similarity, are measured at each preview and recorded as values. Where the data are too few
for them, there is no verdict: the kind of data says so, in the tag `alarm.silent`.
"""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

BEGINNING = 0.2  # share of the steps in which a model may still look collapsed
WINDOW, DEVIATIONS, LEAST = 200, 6, 20  # lines that a loss is compared with; median deviations; minimum of lines
ACCURACY, STREAK = 0.99, 5  # of a discriminator, on so many lines in a row
LEAST_RIGHT = 300  # images of a streak: all right, they show an accuracy above 99 % with 95 % confidence (3 / 300)


def find_spikes(values: Sequence[float]) -> list[int]:
    """Return the positions where a loss jumps above the median of the last 200 values by 6 median deviations.

    Of neighbours above the limit the first counts; a constant past needs a jump of 6 % of its value.
    """
    found = []
    was_above = False
    for position, value in enumerate(values):
        past = values[max(0, position - WINDOW) : position]
        if len(past) < LEAST:
            continue
        middle = median(past)
        deviation = max(median(abs(each - middle) for each in past), abs(middle) / 100)
        is_above = value > middle + DEVIATIONS * deviation
        if is_above and not was_above:
            found.append(position)
        was_above = is_above
    return found


def find_streak(values: Sequence[float], needed: int = STREAK) -> int | None:
    """Return the position at which an accuracy has been above 0.99 for so many values in a row for the first time."""
    length = 0
    for position, value in enumerate(values):
        length = length + 1 if value > ACCURACY else 0
        if length == needed:
            return position
    return None


def find_all(
    lines: Sequence[dict[str, Any]],
    *,
    steps: int,
    batch_size: int,
    find: Callable[[dict[str, tuple[int, float]]], list[str]],
) -> list[str]:
    """Return one sentence per alarm.

    Args:
        lines: the record's lines, {"step", "values"}.
        steps: of the whole training; a preview's values count after the first fifth.
        batch_size: examples that a line's accuracy is over; of small batches more lines make a streak.
        find: returns the alarms of the newest (step, value) of each name; see the kinds of data.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line["values"].items():
            curves.setdefault(name, []).append((line["step"], value))
    found = find({name: curve[-1] for name, curve in curves.items() if curve[-1][0] > BEGINNING * steps})
    losses = curves.get("loss", [])
    for position in find_spikes([value for _, value in losses]):
        step, loss = losses[position]
        before = median(value for _, value in losses[max(0, position - WINDOW) : position])
        found.append(f"step {step}: the loss jumped to {loss:.4g}, its median before was {before:.4g}")
    accuracies = curves.get("discriminator_real_accuracy", [])
    streak = max(STREAK, math.ceil(LEAST_RIGHT / batch_size))
    if (position_won := find_streak([value for _, value in accuracies], streak)) is not None:
        step = accuracies[position_won][0]
        found.append(f"step {step}: the discriminator wins: right on more than {ACCURACY:.0%}, {streak} lines in a row")
    return found
