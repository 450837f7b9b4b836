"""Times two ways to do the same thing in turn, and summarizes them as one row of the table."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.history.costs import measure_memory

HERE = Path(__file__).parents[1]  # benchmarks/


@dataclass(frozen=True)
class Row:
    """One line of the table: the median, least and largest of `repeats` ratios, and what was to be reached.

    count: what each way does in a repeat, such as "140 steps". seeds: of the models and the data's order; none where
    nothing is drawn. seconds: the median of each of two ways. peak_memory_mib: of this process or its largest child, at
    the end of the measurement; measurements before it in the same process count.
    """

    name: str
    title: str
    ratio: float
    low: float
    high: float
    repeats: int
    wanted: str
    detail: str
    count: str
    seeds: tuple[int, ...]
    seconds: tuple[float, float] | None
    peak_memory_mib: float


def compare(
    name: str,
    title: str,
    wanted: str,
    ways: tuple[Callable[[], float], Callable[[], float]],
    *,
    count: str,
    seeds: tuple[int, ...] = (0,),
    detail: str = "",
    repeats: int = 5,
) -> Row:
    """Measure both ways in turn; the ratio is the first one's seconds over the second one's."""
    ratios, medians = take_turns(ways, repeats)
    detail = "; ".join(filter(None, ["{:.4g} s against {:.4g} s".format(*medians), detail]))
    return summarize(name, title, wanted, ratios, detail, count=count, seeds=seeds, seconds=medians)


def take_turns(
    ways: tuple[Callable[[], float], Callable[[], float]], repeats: int
) -> tuple[list[float], tuple[float, float]]:
    """Return the ratios of both ways' seconds, measured in turn, and the median of each way."""
    first, second = zip(*((ways[0](), ways[1]()) for _ in range(repeats)), strict=True)
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return ratios, (statistics.median(first), statistics.median(second))


def summarize(
    name: str,
    title: str,
    wanted: str,
    ratios: list[float],
    detail: str = "",
    *,
    count: str,
    seeds: tuple[int, ...] = (0,),
    seconds: tuple[float, float] | None = None,
) -> Row:
    """Return the row of some ratios; called when the measurement ends, for it looks at the memory."""
    memory = max(measure_memory(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    middle = statistics.median(ratios)
    found = middle, min(ratios), max(ratios), len(ratios)
    return Row(name, title, *found, wanted, detail, count, seeds, seconds, memory)


def time_it(action: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
