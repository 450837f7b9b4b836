"""The command line `pipeline`: one tree of the files of pipeline/commands/, such as `pipeline compare`.

pipeline --help              # the commands and the stages
pipeline <command> --help

For completion with the Tab key, add to ~/.bashrc: eval "$(_PIPELINE_COMPLETE=bash_source pipeline)"; to ~/.zshrc the
same with zsh_source, and to ~/.config/fish/config.fish: _PIPELINE_COMPLETE=fish_source pipeline | source
"""

import ast
import errno
import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import params
from pipeline.artifacts import ArtifactError
from pipeline.evidence.protocol import ProtocolError
from pipeline.params import ParamsError
from pipeline.runtime import output
from pipeline.runtime.environment import HardwareError

FOLDER = Path(__file__).parent / "commands"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # a disk that takes no more; Python names no file
STAGES = Path(__file__).parent / "stages"
BY_STAGE = ("repro", "stage")  # the commands whose arguments are stages, not runs


class Command(click.Command):
    """A file of pipeline/commands/, which reads its own arguments and has its own --help."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.stem, callback=self._call, add_help_option=False)
        self.path = path

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave the arguments to the file."""
        ctx.params["arguments"] = args
        return []

    def _call(self, arguments: list[str]) -> int:
        return int(importlib.import_module(f"pipeline.commands.{self.path.stem}").main(arguments))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete an option of the file, or the name of a run or a stage, without importing the file."""
        if incomplete.startswith("-"):
            words = re.findall(r"\"(--[a-z-]+)\"", self.path.read_text(encoding="utf-8"))
        else:
            words = list_stages() if self.path.stem in BY_STAGE else params.list_keys("runs")
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]


class Tree(click.Group):
    """The commands, and in its help the stages too."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the two lists."""
        with formatter.section("Commands"):
            formatter.write_dl([(path.stem, summarize(path)) for path in list_files(FOLDER)])
        with formatter.section("Stages, which `pipeline repro` and `dvc repro` run"):
            formatter.write_dl([(path.stem, summarize(path)) for path in list_files(STAGES)])


def list_files(folder: Path) -> list[Path]:
    """List the files of a folder that are commands or stages."""
    return [path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("__")]


def summarize(path: Path) -> str:
    """Return the first line of a file's docstring, without the name of a stage."""
    line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    text = re.sub(r"^Stage \w+: ", "", line)
    return text[:1].upper() + text[1:]


def list_stages() -> list[str]:
    """Return the names of the stages of dvc.yaml, with their keys; none if it cannot be read."""
    try:
        stages: dict[str, Any] = YAML(typ="safe", pure=True).load(Path("dvc.yaml"))["stages"]
    except (OSError, YAMLError, KeyError, TypeError):
        return []
    sections = {name: str(stage.get("foreach", "")).strip("${}") for name, stage in stages.items()}
    keyed = [f"{name}@{key}" for name, section in sections.items() if section for key in params.list_keys(section)]
    return [*sections, *keyed]


def main(arguments: list[str] | None = None) -> int:
    """Run a command, by default that of the command line; return its exit status."""
    if arguments is None:
        output.protect()  # `pipeline sync | head` sends everything
        arguments = sys.argv[1:]
    summary = "Trains generative models, measures them, compares and reproduces their numbers."
    tree = Tree("pipeline", {path.stem: Command(path) for path in list_files(FOLDER)}, help=summary)
    try:
        return int(tree.main(arguments, "pipeline", standalone_mode=False, max_content_width=120))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        return 130  # as shells say it
    except (ParamsError, ArtifactError, ProtocolError, HardwareError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        if not error.filename and error.errno not in FULL:
            raise
        is_git = isinstance(error, FileNotFoundError) and error.filename == "git"
        problem = "not installed, or not in PATH" if is_git else error.strerror
        place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        print(f"error: {place}{problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
