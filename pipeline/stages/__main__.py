"""Runs one stage of the pipeline, as dvc.yaml does.

    python -m pipeline.stages train gan
    python -m pipeline.stages train --help

A stage is a file of this folder with a function `main`, which takes a key of params.yaml, or nothing.
pipeline/runtime/environment.py lists the settings of the machine.
"""

import ast
import importlib
import inspect
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.runtime import preemption

if __name__ == "__main__":  # before the imports of a stage, which take seconds
    preemption.begin()

from pipeline.artifacts import ArtifactError
from pipeline.history import costs, dvc_cache, finished, inputs
from pipeline.params import ParamsError
from pipeline.runtime import environment, processes
from pipeline.runtime.environment import HardwareError
from pipeline.runtime.preemption import PREEMPTED, PreemptedError

FOLDER = Path(__file__).parent
HELP = {"--help", "-h"}
SEVERAL = ("networks", "train")  # the stages that may run in several processes


def main(arguments: list[str]) -> None:
    """Run the stage that the command line names."""
    name, *rest = arguments or [""]
    known = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if not path.stem.startswith("__")}
    if name not in known:
        print(__doc__)
        for path in known.values():
            summary = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            print(f"  {path.stem:12}{summary.partition(chr(10))[0]}")
        sys.exit(0 if name in HELP else 2)
    stage = importlib.import_module(f"pipeline.stages.{name}")
    run(stage.main, rest, name, str(stage.__doc__), several=name in SEVERAL)


def run(main: Callable[..., None], arguments: list[str], name: str, usage: str, *, several: bool = False) -> None:
    """Call a stage with its arguments: a key, or nothing; an expected error ends the process with one message.

    Args:
        main: the stage.
        arguments: of the command line.
        name: of the stage, for messages.
        usage: is printed where the arguments do not fit.
        several: whether it may be one of several processes.
    """
    if len(arguments) != len(inspect.signature(main).parameters) or any(word.startswith("-") for word in arguments):
        print(usage)
        sys.exit(0 if HELP & {*arguments} else 2)
    try:
        environment.require_valid()
        if not processes.is_member():
            environment.warn_of_unknown()
        if not several:
            processes.refuse_several(name)
        if stage := environment.read_text("DVC_STAGE"):
            dvc_cache.require_inputs(stage)
            if not processes.get_rank():
                finished.remove_stored()
        seen = inputs.read(name, *arguments)  # before the stage reads them
        if stage:
            seen.require_checked()
        main(*arguments)
        seen.require_same()  # before DVC certifies them
        if stage:
            costs.note(stage)
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
        os._exit(PREEMPTED)  # everything is saved; the libraries take seconds to unload, and a scheduler may kill first
    if isinstance(error, ParamsError | ArtifactError | HardwareError):
        sys.exit(f"error: {error}")
    if isinstance(error, shutil.Error):  # of a folder that was copied: its first file
        _, place, reason = error.args[0][0]
        sys.exit(f"error: {place}: {reason}")
    if isinstance(error, OSError) and error.filename:
        sys.exit(f"error: {os.fsdecode(error.filename)}: {error.strerror}")
    if isinstance(error, KeyError) and error.args == tuple(arguments):
        sys.exit(f"error: params.yaml has no section named {arguments[0]!r} for this stage")


if __name__ == "__main__":
    main(sys.argv[1:])
