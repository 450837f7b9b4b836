"""Two seeds at once on one thread each, against one after the other on all threads."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import torch

from speed.timing import HERE, Row, compare, time_it
from speed.trainings import time_bare


def measure(steps: int = 200) -> Iterator[Row]:
    """Two seeds at once on one thread each, against one after the other on all threads."""
    child = [sys.executable, "-m", "speed.seeds", str(steps)]

    def together() -> None:
        started = [subprocess.Popen([*child, "1"], cwd=HERE) for _ in range(2)]
        assert not any(process.wait() for process in started)

    def in_turn() -> None:
        for _ in range(2):
            subprocess.run([*child, str(torch.get_num_threads())], cwd=HERE, check=True)

    ways = partial(time_it, together), partial(time_it, in_turn)
    title = "two seeds at once, a thread each, against in turn on all"
    yield compare("together_over_in_turn", title, "< 1", ways, count=f"2 x {steps} steps", repeats=3)


if __name__ == "__main__":  # of a child: steps, threads
    torch.set_num_threads(int(sys.argv[2]))
    time_bare(int(sys.argv[1]), whole=True)
