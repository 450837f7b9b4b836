"""Runs one stage by hand, without DVC, which then does not know the result.

    pipeline stage --help                # the stages
    pipeline stage train gan

`pipeline repro train@gan` also runs what the stage needs, and notes the result in dvc.lock.
"""

import os
import sys

from pipeline.runtime.preemption import STAGES


def main(arguments: list[str]) -> int:
    """Become the stage's own process, which answers signals from its first moment on."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", STAGES, *arguments])  # noqa: S606 - no shell is wanted
