"""One file, one command of `pipeline`: main(arguments) returns the exit status. This file has what commands share."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.params import Params
from pipeline.runtime import environment

DVC = [sys.executable, "-m", "dvc"]


RESULTS = ("metrics", "sets", "protocol")  # JSON files of a run in reports/runs/<run>


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `pipeline <name>`; its help is the command's docstring, line by line."""
    return argparse.ArgumentParser(
        prog=f"pipeline {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def read_count(text: str) -> int:
    """Read a number from 1 on, for a parser."""
    if not text.isdecimal() or not int(text):
        msg = f"expected a number from 1 on, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def align_table(titles: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = ()) -> str:
    """Return a Markdown table whose columns are aligned, so that it can be read in a terminal too.

    Args:
        titles: of the columns.
        rows: a cell per column.
        numbers: titles of the columns that are aligned to the right.
    """
    rows = [titles, *rows]
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(titles))]
    right = [title in numbers for title in titles]
    lines = [
        " | ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        for row in rows
    ]
    rule = "|".join("-" * (width + 1) + ("-:"[is_right]) for width, is_right in zip(widths, right, strict=True))
    return "".join(f"{line}\n" for line in [f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def call(command: list[str], folder: Path) -> str:
    """Run a program in a folder and return its output.

    Raises:
        ArtifactError: if it fails, with its last words.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{' '.join(command)} failed: {done.stderr.strip()}"
        raise ArtifactError(msg)
    return done.stdout


def require_runs(names: Iterable[str], settings: Params) -> None:
    """Refuse names that no run of params.yaml has.

    Raises:
        ArtifactError: with these names, and those that there are.
    """
    if unknown := [name for name in names if name not in settings.runs]:
        msg = f"no run {', '.join(unknown)}; params.yaml has {', '.join(settings.runs) or 'none'}"
        raise ArtifactError(msg)


@contextmanager
def clone_project(name: str, done: str) -> Iterator[Path]:
    """Clone the last commit, and give the folder of this project in the clone, which is removed at the end.

    Args:
        name: the beginning of the clone's name.
        done: what happens with the commit, for the warning that uncommitted changes are no part of it.
    """
    root = Path(call(["git", "rev-parse", "--show-toplevel"], Path.cwd()).strip())
    prefix = call(["git", "rev-parse", "--show-prefix"], Path.cwd()).strip()
    if call(["git", "status", "--porcelain", "--untracked-files=no"], root):
        print(f"warning: uncommitted changes are not part of what is {done}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        clone = Path(folder) / "clone"
        call(["git", "clone", "--quiet", str(root), str(clone)], root)
        yield clone / prefix


def require_repository() -> Path:
    """Return the folder of the repository that this folder and the package are in.

    Raises:
        ArtifactError: if the package is elsewhere, so that git knows nothing of its code here.
    """
    root = Path(call(["git", "rev-parse", "--show-toplevel"], Path.cwd()).strip())
    tracked = call(["git", "ls-files", "--", f"{root}/{plugins.OWN}/__init__.py"], root)
    if not tracked:
        msg = f"{root}: expected a clone of the package's repository, got a project that uses {plugins.PACKAGE}"
        raise ArtifactError(msg)
    return root


def find_python() -> dict[str, str]:
    """Return the environment in which `python` is this interpreter, also where its environment is not activated."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.read_text('PATH')}"}


def run_in_clone(command: list[str], project: Path) -> None:
    """Run a program in a clone of the project, with this interpreter; what it prints goes to standard error.

    Raises:
        ArtifactError: if it fails.
    """
    kept = {name: value for name, value in find_python().items() if not name.startswith(("DVC_", "MLFLOW_"))}
    status = subprocess.run(command, cwd=project, env=kept, stdout=sys.stderr, check=False).returncode
    if status:
        msg = f"{' '.join(command[1:])} failed with status {status} in a clone"
        raise ArtifactError(msg)
