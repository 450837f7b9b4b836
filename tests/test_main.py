"""The command line as one tree: its help, the nearest name, and what the Tab key completes."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import params
from pipeline.__main__ import FOLDER, STAGES, list_files, main
from pipeline.commands import align_table, stage
from tests.conftest import MORE_RUNS, ROOT


def test_the_help_has_every_command_and_every_stage_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for path in [*list_files(FOLDER), *list_files(STAGES)]:
        first = path.read_text(encoding="utf-8").partition('"""')[2].partition("\n")[0]
        words = re.sub(r"^Stage \w+: ", "", first)
        assert f" {path.stem} {words[0].upper()}{words[1:]} " in text
    assert (
        text.index("Commands:")
        < text.index("verify Hashes")
        < text.index("Stages, which")
        < text.index("check Refuses")
    )


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["comapre", "gan"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith("Error: No such command 'comapre'. Did you mean 'compare'?\n")


def test_without_a_command_the_help_comes_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "reproduce" in "".join(capsys.readouterr())


@pytest.mark.parametrize("command", [path.stem for path in list_files(FOLDER) if path.stem != "stage"])
def test_every_command_keeps_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: pipeline {command} ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pipeline co", {"compare", "costs"}),
        ("pipeline compare tr", {"transformer"}),
        ("pipeline compare gan v", {"vae"}),
        ("pipeline grid gan --", {"--dry-run", "--remove"}),
        ("pipeline repro train@", {f"train@{run}" for run in ("gan", "vae", "transformer", *MORE_RUNS)}),
        ("pipeline repro net", {"networks", "networks@classifier", "networks@listener"}),
    ],
)
def test_the_tab_key_completes_commands_options_runs_and_stages(
    line: str, words: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("_PIPELINE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    with pytest.raises(SystemExit):
        main([])
    assert {found.removeprefix("plain,") for found in capsys.readouterr().out.split()} == words


def test_outside_of_a_project_the_tab_key_completes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_PIPELINE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "pipeline repro t")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.strip() == ""


@pytest.mark.slow
def test_the_completion_is_asked_for_without_the_libraries_of_the_stages() -> None:
    words = {"_PIPELINE_COMPLETE": "bash_complete", "COMP_WORDS": "pipeline repro t", "COMP_CWORD": "2"}
    code = (
        "import sys, pipeline.__main__ as p\ntry: p.main([])\nfinally: print({'torch', 'mlflow'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | words, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_a_stage_by_hand_becomes_the_stage_s_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(os, "execv", lambda *arguments: called.append(arguments))
    stage.main(["train", "gan"])
    assert called == [(sys.executable, [sys.executable, "-m", "pipeline.stages", "train", "gan"])]


def test_tables_are_aligned_markdown() -> None:
    table = align_table(["run", "seconds"], [["gan", "1,000"], ["transformer", "9"]], numbers=["seconds"])
    assert table == (
        "| run         | seconds |\n|-------------|--------:|\n| gan         |   1,000 |\n| transformer |       9 |\n"
    )


# --- docs/runs.md -------------------------------------------------------------

BLOCKS = re.findall(r"^    pipeline (.*)$", (ROOT / "docs" / "runs.md").read_text(encoding="utf-8"), re.MULTILINE)
LINES = [shlex.split(line, comments=True) for line in BLOCKS]


class ParsedError(Exception):
    """A command has understood its arguments, and need not go on."""


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_the_page_of_runs_shows_commands_as_they_are(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, arguments: list[str]) -> None:
        raise ParsedError(parse(self, arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(ParsedError):
        main(words)


@pytest.mark.usefixtures("workdir")
def test_the_grids_of_the_page_make_runs_and_its_first_comparison_names_them() -> None:
    grids = [words for words in LINES if words[0] == "grid"]
    assert len(grids) == 5
    for words in grids:
        assert main(words) == 0
    runs = params.load().runs
    assert runs.keys() >= {"gan_hinge_0", "gan_hinge_1", "gan_hinge_2", "gan_augment-translation-cutout"}
    assert not any(name.startswith("vae_") for name in runs)  # the last one takes them away
    assert ["compare", "gan", "gan_hinge"] in LINES
