"""The wheel: it has every file that git has of the package, and a new project runs with it in another folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.__main__ import main
from pipeline.commands import init
from tests.conftest import ROOT
from tests.test_dvc import run

BUILT = {name: init.read_template(name) for name in init.FILES}


def test_the_files_of_a_new_project_are_those_that_the_wheel_takes_along() -> None:
    for name in ("setup.py", "MANIFEST.in"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert [file for file in init.FILES if f'"{file}"' not in text and f" {file}" not in text] == []


def test_init_writes_a_project_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    assert main(["init", str(folder)]) == 0
    assert {name: (folder / name).read_text(encoding="utf-8") for name in init.FILES} == BUILT
    assert (folder / ".git").is_dir()
    stages = YAML(typ="safe", pure=True).load(BUILT["dvc.yaml"])["stages"]
    assert stages["check"]["always_changed"] is True
    assert "pipeline" not in str([each.get("do", each).get("deps") for each in stages.values()])
    assert "dvc repro" in capsys.readouterr().out
    (folder / "params.yaml").write_text("mine")
    (folder / "dvc.yaml").unlink()
    assert main(["init", str(folder)]) == 1
    assert (folder / "params.yaml").read_text() == "mine"
    assert not (folder / "dvc.yaml").exists()
    assert "expected a folder without params.yaml, params.schema.json, .gitignore" in capsys.readouterr().err


def test_a_proof_about_code_is_refused_where_git_has_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["init", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    assert main(["prove", "HEAD"]) == 1
    assert "expected a clone of the package's repository, got a project that uses" in capsys.readouterr().err


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the package, from a copy without anything that git does not have."""
    folder = tmp_path_factory.mktemp("package")
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if name.startswith(("pipeline/", ".dvc/")) or "/" not in name:
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run(folder / "source", *pip, "--no-compile", "--target", str(folder / "site"), ".", cold=True)
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(installed: Path) -> None:
    tracked = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "pipeline").splitlines()
    found = {path.relative_to(installed).as_posix() for path in (installed / "pipeline").rglob("*") if path.is_file()}
    assert found == {*tracked, *(f"pipeline/project/{name}" for name in init.FILES)}
    assert (installed / "bin" / "pipeline").exists()
    [about] = installed.glob("*.dist-info")
    assert {path.name for path in (about / "licenses").iterdir()} == {"LICENSE", "THIRD_PARTY.md"}


@pytest.mark.slow
def test_a_new_project_runs_with_the_installed_package_and_sees_its_edits(installed: Path, tmp_path: Path) -> None:
    def call(*command: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment |= {"PYTHONPATH": str(installed), "PATH": path}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    call(sys.executable, "-m", "pipeline", "init")
    values = YAML(typ="safe", pure=True).load(tmp_path / "params.yaml")  # without what needs torch, which takes seconds
    values |= {"data": {"text": values["data"]["text"]}, "networks": {}, "models": {}, "metrics": {}, "runs": {}}
    YAML(typ="safe", pure=True).dump(values, tmp_path / "params.yaml")
    assert "Running stage 'fetch@text'" in call("dvc", "repro", "fetch@text")
    source = installed / "pipeline" / "data" / "numpy_docs.py"
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("    del config\n", "    print(config)\n"), encoding="utf-8")
    output = call("dvc", "repro", "fetch@text")
    assert re.findall("Running stage '(.*)'", output) == ["check", "fetch@text"]
    assert "source='numpy_docs'" in output  # the edit ran
