"""Tells whether a process is dvc."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import psutil

NAMES = {"dvc", "dvc.exe"}


def is_dvc(process: psutil.Process) -> bool:
    """Whether a process is dvc; one that is gone or hidden is not."""
    with contextlib.suppress(psutil.Error):
        return names_dvc(process.cmdline())
    return False


def names_dvc(words: Sequence[str]) -> bool:
    """Whether a command line is `dvc ...`, `python .../bin/dvc ...` or `python -m dvc ...`."""
    return any(Path(word).name in NAMES for word in words[:3])
