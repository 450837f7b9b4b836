"""The README says what there is; its figures are tested in tests/commands/test_readme.py."""

import re

from pipeline import plugins
from pipeline.__main__ import FOLDER
from tests.conftest import ROOT
from tests.test_architecture import MODULES, read_code


def test_the_example_source_of_the_readme_is_the_one_that_a_test_runs() -> None:
    example = (ROOT / "tests" / "data" / "example_source.py").read_text(encoding="utf-8")
    indented = "".join(f"    {line}" if line.strip() else line for line in example.splitlines(keepends=True))
    assert indented in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_source_stands_in_the_readme_s_table() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = "".join(re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE))
    assert [name for name in plugins.names("data") if f"`{name}`" not in rows] == []


def test_the_commands_of_the_readme_exist() -> None:
    code = read_code((ROOT / "README.md").read_text(encoding="utf-8"))
    commands = set(re.findall(r"^\s*pipeline ([a-z]+)", code, re.MULTILINE))
    assert {"compare", "doctor", "readme", "reproduce"} <= commands
    assert [name for name in commands if not (FOLDER / f"{name}.py").exists()] == []
    modules = set(re.findall(r"python -m (pipeline[\w.]*)", code))
    assert "pipeline.params" in modules
    assert modules <= MODULES.keys()
