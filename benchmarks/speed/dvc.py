"""A `dvc repro` of the main project that has nothing to do, against `dvc status`."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from speed.timing import HERE, Row, compare, time_it


def measure() -> Iterator[Row]:
    """A `dvc repro` of the main project that has nothing to do, against `dvc status`."""
    require_reproduced()

    def run(command: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", command, "--quiet"], cwd=HERE.parent, check=True)

    ways = partial(time_it, partial(run, "repro")), partial(time_it, partial(run, "status"))
    title = "`dvc repro` with nothing to do against `dvc status`"
    yield compare("repro_over_status", title, "<= 2", ways, count="1 command", seeds=())


def require_reproduced() -> None:
    """Refuse to go on where `dvc repro` of the main project would have something to do, such as its trainings.

    Raises:
        SystemExit: with the command to run first.
    """
    command = [sys.executable, "-m", "dvc", "status", "--quiet"]  # its exit status is 1 if a stage is stale
    if subprocess.run(command, cwd=HERE.parent, check=False).returncode:
        msg = "the main project is not up to date: run `make repro` there first, or leave dvc out of --only"
        raise SystemExit(msg)
