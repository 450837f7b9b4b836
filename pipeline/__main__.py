"""The command line `pipeline`: runs one of the files of pipeline/commands/, such as `pipeline compare`.

pipeline <command> --help
"""

import ast
import importlib
import os
import sys
from pathlib import Path

from pipeline.artifacts import ArtifactError
from pipeline.evidence.protocol import ProtocolError
from pipeline.params import ParamsError
from pipeline.runtime import output
from pipeline.runtime.environment import HardwareError

FOLDER = Path(__file__).parent / "commands"


def main(arguments: list[str] | None = None) -> int:
    """Run a command, by default that of the command line; return its exit status."""
    if arguments is None:
        output.protect()  # `pipeline sync | head` sends everything
        arguments = sys.argv[1:]
    known = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem != "__init__"}
    if not arguments or arguments[0] not in known:
        print("usage: pipeline <command> [--help]\n")
        for name, path in known.items():
            summary = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            print(f"  {name:12}{summary.splitlines()[0]}")
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    command = importlib.import_module(f"pipeline.commands.{arguments[0]}")
    try:
        return int(command.main(arguments[1:]))
    except (ParamsError, ArtifactError, ProtocolError, HardwareError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        if not error.filename:
            raise
        is_git = isinstance(error, FileNotFoundError) and error.filename == "git"
        problem = "not installed, or not in PATH" if is_git else error.strerror
        print(f"error: {os.fsdecode(error.filename)}: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
