"""One file, one DVC stage. Stages never import one another; they meet in the files of artifacts.py."""

import inspect
import os
import sys
from collections.abc import Callable

from pipeline.artifacts import ArtifactError
from pipeline.history import costs, dvc_cache
from pipeline.params import ParamsError
from pipeline.runtime import preemption, processes
from pipeline.runtime.preemption import PREEMPTED, PreemptedError
from pipeline.runtime.processes import HardwareError

if any(word.startswith(f"{__name__}.") for word in sys.orig_argv):  # before the stage imports what takes seconds
    preemption.begin()


def run_stage(main: Callable[..., None], *, several: bool = False) -> None:
    """Call main with the command line's arguments: a key, or nothing; expected errors end in one message.

    Args:
        main: the stage.
        several: whether it may be one of several processes.
    """
    arguments = sys.argv[1:]
    if len(arguments) != len(inspect.signature(main).parameters) or any(word.startswith("-") for word in arguments):
        print(sys.modules["__main__"].__doc__)
        sys.exit(0 if {"--help", "-h"} & set(arguments) else 2)
    try:
        if not several:
            processes.refuse_several(str(getattr(sys.modules["__main__"].__spec__, "name", "this stage")))
        if "DVC_STAGE" in os.environ:
            dvc_cache.require_inputs(os.environ["DVC_STAGE"])
        main(*arguments)
        if "DVC_STAGE" in os.environ:
            costs.note(os.environ["DVC_STAGE"])
    except BaseException as error:
        processes.report(f"{type(error).__name__}: {error}")
        _explain(error, arguments)
        raise
    processes.report("")


def _explain(error: BaseException, arguments: list[str]) -> None:
    """End with one message where the error is an expected one."""
    if isinstance(error, PreemptedError):
        print(f"stopped by {error}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(PREEMPTED)  # all is saved and closed; the libraries take seconds to unload, and who preempts kills
    if isinstance(error, ParamsError | ArtifactError | HardwareError):
        sys.exit(f"error: {error}")
    if isinstance(error, KeyError) and error.args == tuple(arguments):
        sys.exit(f"error: params.yaml has no section named {arguments[0]!r} for this stage")
