"""One file, one DVC stage. Stages never import one another; they meet in the files of artifacts.py."""

import sys
from collections.abc import Callable

from pipeline.artifacts import ArtifactError
from pipeline.params import ParamsError


def run_stage(main: Callable[[str], None]) -> None:
    """Call main(key) with the command line's one argument; expected errors end in one message and status 1."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(sys.modules["__main__"].__doc__)
        sys.exit(0 if "--help" in sys.argv or "-h" in sys.argv else 2)
    try:
        main(sys.argv[1])
    except (ParamsError, ArtifactError) as error:
        sys.exit(f"error: {error}")
    except KeyError as error:
        if error.args != (sys.argv[1],):
            raise
        sys.exit(f"error: params.yaml has no section named {sys.argv[1]!r} for this stage")
