"""Being stopped from outside: the exit status that means "try again", and the end of a `dvc` that was killed."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil

PREEMPTED = 75  # EX_TEMPFAIL: DVC must not take a half-trained model for a finished one


class PreemptedError(RuntimeError):
    """A signal asked to stop; the state is saved, and the same command goes on from there."""


def follow_dvc() -> None:
    """End this process when the `dvc` that started it is gone: DVC leaves its stages running when it is killed.

    A second trainer would otherwise start beside the orphan at the next `dvc repro`. SIGTERM lets a training save.
    """
    if "DVC_STAGE" not in os.environ:
        return
    for parent in psutil.Process().parents():
        if any("dvc" in Path(word).name for word in parent.cmdline()[:3]):
            threading.Thread(target=_wait_for, args=(parent,), daemon=True).start()
            return


def _wait_for(parent: psutil.Process) -> None:
    while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
