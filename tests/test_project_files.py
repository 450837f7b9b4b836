"""The files that others look for in a repository: they are there, agree with one another, and name what exists."""

import json
import re
import tomllib

import pytest
from ruamel.yaml import YAML

from pipeline import plugins
from pipeline.networks import inception
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTICES = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")


def test_the_licence_is_the_one_that_the_package_and_the_citation_name() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
    citation = YAML(typ="safe", pure=True).load(ROOT / "CITATION.cff")
    assert PROJECT["license"] == citation["license"] == "Apache-2.0"
    assert citation["version"] == PROJECT["version"]
    assert all((ROOT / name).exists() for name in PROJECT["license-files"])


def test_every_data_source_and_every_embedded_weight_has_a_notice() -> None:
    named = {name for line in NOTICES.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert [name for name in plugins.names("data") if name not in named] == []
    assert inception.__name__.rpartition(".")[2] in named
    patterns = re.findall(r"`(pipeline/judges/[^`]+)`", NOTICES)
    covered = {path for pattern in patterns for path in ROOT.glob(pattern)}
    assert covered == {path.parent for path in ROOT.glob("pipeline/judges/*/recipe.json")} != set()


@pytest.mark.parametrize("name", ["SECURITY.md", "THIRD_PARTY.md", "CODE_OF_CONDUCT.md"])
def test_the_links_of_the_page_lead_to_files(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_workflow_and_container_run_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([.\w/-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    workflow = YAML(typ="safe", pure=True).load(ROOT / ".github" / "workflows" / "tests.yml")
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    called = re.findall(r"\bmake ([.\w/-]+)", "\n".join([*steps, container["postCreateCommand"]]))
    assert {"lint", "test", "test-slow", ".venv/installed"} <= set(called) <= targets
