"""One file, one DVC stage. Stages never import one another; they meet in the files of artifacts.py."""

import inspect
import sys
from collections.abc import Callable

from pipeline.artifacts import ArtifactError
from pipeline.params import ParamsError
from pipeline.preemption import PREEMPTED, PreemptedError, follow_dvc


def run_stage(main: Callable[..., None]) -> None:
    """Call main with the command line's arguments: a key, or nothing; expected errors end in one message."""
    arguments = sys.argv[1:]
    if len(arguments) != len(inspect.signature(main).parameters) or any(word.startswith("-") for word in arguments):
        print(sys.modules["__main__"].__doc__)
        sys.exit(0 if {"--help", "-h"} & set(arguments) else 2)
    follow_dvc()
    try:
        main(*arguments)
    except PreemptedError as error:
        print(f"stopped by {error}", file=sys.stderr)
        sys.exit(PREEMPTED)
    except (ParamsError, ArtifactError) as error:
        sys.exit(f"error: {error}")
    except KeyError as error:
        if error.args != tuple(arguments):
            raise
        sys.exit(f"error: params.yaml has no section named {arguments[0]!r} for this stage")
