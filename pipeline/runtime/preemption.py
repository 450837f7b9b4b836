"""Stops from outside: an exit status that means "try again", and a process that ends with the one that started it.

`python -m pipeline.stages` calls `begin` before it imports a stage: PyTorch, Lightning and MLflow take seconds.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from pipeline.runtime import environment, output

PREEMPTED = 75  # EX_TEMPFAIL: DVC must not take a half-trained model for a finished one
SUPERVISOR = "PIPELINE_SUPERVISOR"  # set by processes.py for the processes that it starts: its process id
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # a scheduler, a terminal that is closed, Ctrl-C
STAGES = "pipeline.stages"  # the module that runs a stage
SHELLS = {"sh", "bash", "dash", "zsh", "ksh"}  # DVC starts a stage through one


class PreemptedError(SystemExit):
    """A signal asked to stop: ends the process with status 75; `except Exception` does not stop it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = PREEMPTED


def begin() -> None:
    """Let a signal end this process with status 75, let no print do it, and follow the process that started it."""
    output.protect()
    catch(_stop)
    follow()


def catch(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Handle the signals that ask to stop, but not those that `nohup` or a shell's `&` ignores.

    Returns:
        The former handler of each signal that is handled now.
    """
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    msg = f"{signal.Signals(number).name} outside the training's steps; the same command goes on from the last state"
    raise PreemptedError(msg)


def follow() -> None:
    """End this process when the supervisor, the `dvc` or the `pipeline repro` that started it is gone.

    DVC leaves its stages running when it is killed, and a second trainer would start next to the orphan at the next
    `dvc repro`. The process gets SIGTERM, which lets a training save.
    """
    parents = psutil.Process().parents()
    if supervisor := environment.read_number(SUPERVISOR, 0):
        followed = [parent for parent in parents if parent.pid == supervisor]
        orphan = not followed
    elif environment.is_set("DVC_STAGE"):
        followed = [parent for parent in parents if names_dvc(parent.cmdline())][:1]
        orphan = not followed and _is_adopted(parents)
        followed += [parent for parent in parents if names_repro(parent.cmdline())]
    else:
        return
    if orphan:
        print("the process that started this one is gone: nothing was done", file=sys.stderr)
        sys.exit(PREEMPTED)
    for parent in followed:
        threading.Thread(target=_wait_for, args=(parent,), daemon=True).start()


def names_dvc(words: list[str]) -> bool:
    """Say whether a command line is dvc's: `dvc ...`, `python .../bin/dvc ...` or `python -m dvc ...`."""
    return any(Path(word).name in {"dvc", "dvc.exe"} for word in words[:3])


def names_repro(words: list[str]) -> bool:
    """Say whether a command line is that of `pipeline repro`, which starts a dvc for each stage."""
    return "repro" in words[:4] and any(Path(word).name in {"pipeline", "pipeline.exe"} for word in words[:3])


def names_stage(words: list[str]) -> bool:
    """Say whether a command line is a stage's: `python -m pipeline.stages ...`, perhaps with an option of Python."""
    return STAGES in words[:4]


def _is_adopted(parents: list[psutil.Process]) -> bool:
    """Say whether the nearest parent but shells is the one that takes in orphans: process 1, or the user's systemd."""
    nearest = next((parent for parent in parents if parent.name() not in SHELLS), None)
    return nearest is None or nearest.pid == 1 or nearest.name() == "systemd"


def _wait_for(parent: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end between the two questions
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
