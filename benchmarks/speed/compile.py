"""A step with torch.compile against one without, and how many steps pay for the compilation."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

from speed.timing import HERE, Row, summarize, take_turns
from speed.trainings import LARGE, SKIPPED, count_millions, make, time_bare


def measure() -> Iterator[Row]:
    """A step with torch.compile against without, at two sizes, and how many steps pay for the compilation."""
    sizes: tuple[tuple[str, int, dict[str, Any]], ...] = (
        ("compiled_over_eager", 110, {}),
        ("compiled_over_eager_large", 30, LARGE | {"context": 256, "batch_size": 16}),
    )
    for name, steps, size in sizes:
        compilation = time_compilation(size)
        ways = partial(time_bare, steps, compile_it=True, **size), partial(time_bare, steps, **size)
        ratios, medians = take_turns(ways, 3)
        compiled, eager = (seconds / (steps - SKIPPED) for seconds in medians)
        detail = f"{compiled:.3g} s against {eager:.3g} s; the compilation takes {compilation:.0f} s"
        if eager > compiled:
            detail += f", which {compilation / (eager - compiled):.0f} steps save"
        model, _ = make("transformer", **size)
        title = f"training step of {count_millions(model)} million parameters: torch.compile of the loss against eager"
        count = f"{steps - SKIPPED} steps"
        yield summarize(name, title, "< 1 to be used", ratios, detail, count=count, seconds=medians)


def time_compilation(size: dict[str, Any]) -> float:
    """Time the first step of a compiled training in a process that finds nothing compiled before."""
    code = f"from speed.trainings import time_bare; print(time_bare(1, compile_it=True, whole=True, **{size!r}))"
    with tempfile.TemporaryDirectory() as folder:
        mine = {key: value for key, value in os.environ.items() if not key.startswith("TORCHINDUCTOR_")}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=HERE, env=mine | {"TMPDIR": folder}, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)
