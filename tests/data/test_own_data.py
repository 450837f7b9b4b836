"""Your own data in DVC: added, pushed, pulled and imported; git keeps the .dvc files, and nothing else of data/own."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo
from PIL import Image
from scmrepo.git import Git

from pipeline.data import image_folder
from pipeline.formats.own_files import read_reports
from pipeline.stages.check import make_folder
from tests.conftest import ROOT
from tests.test_dvc import copy_project, run, set_params


@pytest.mark.parametrize(
    ("path", "is_ignored"),
    [
        ("data/", False),  # else DVC does not look into it, and finds no .dvc file below
        ("data/README.md", False),
        ("data/raw/", True),
        ("data/own/", False),
        ("data/own/pictures.dvc", False),
        ("data/own/.gitignore", False),
        ("data/own/pictures/", False),
        ("data/own/pictures/1.png", True),
        ("data/own/pictures/cats.dvc", False),
        ("data/own/pictures/.gitignore", False),
        ("data/own/pictures/cats/1.png", True),
        ("data/own/notes.txt", True),
    ],
)
def test_git_and_dvc_agree_on_what_is_ignored(tmp_path: Path, path: str, is_ignored: bool) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    if path.endswith("/"):
        (tmp_path / path).mkdir(exist_ok=True)
    else:
        (tmp_path / path).touch()
    status = subprocess.run(["git", "check-ignore", "--quiet", path], cwd=tmp_path, check=False).returncode
    if not path.endswith("/"):  # git knows no empty folders
        assert (status == 0) == is_ignored
    assert Git(str(tmp_path)).is_ignored(str(tmp_path / path) + "/" * path.endswith("/")) == is_ignored


def test_the_files_of_dvc_are_no_pictures(tmp_path: Path) -> None:
    for name in ("own/cats.dvc", "own/.gitignore", "own/cats/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    config = image_folder.Config(source="image_folder", path=str(tmp_path / "own"), split_seed=0, validation=0.1)
    image_folder.fetch(tmp_path / "raw", config)
    assert [report.path for report in read_reports(tmp_path / "raw")] == ["cats/", "cats/1.png"]


def test_a_folder_that_no_source_reads_is_made_and_one_that_dvc_pull_brings_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(Path("own/texts"))
    make_folder(Path("own/texts"))  # which is there
    Path("own/pictures.dvc").touch()
    make_folder(Path("own/pictures"))  # DVC would take the empty folder for the new content
    make_folder(Path("own/pictures/cats"))
    assert sorted(path.name for path in Path("own").iterdir()) == ["pictures.dvc", "texts"]


@pytest.mark.slow
def test_added_pictures_are_pushed_pulled_by_a_colleague_and_imported_by_another_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, colleague = tmp_path / "project", tmp_path / "colleague"
    copy_project(project)
    set_params(project, {"data.images.source": "image_folder"})
    pictures = project / "data" / "own" / "pictures"
    for number in range(3):
        (pictures / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(pictures / "ab"[number % 2] / f"{number}.png")
    with (project / ".dvc" / "config").open("a") as file:
        file.write(f"    remote = store\n['remote \"store\"']\n    url = {tmp_path / 'remote'}\n")
    monkeypatch.chdir(project)
    Repo().add("data/own/pictures")
    fetches = ("fetch@images", "fetch@text")
    run(project, "dvc", "repro", *fetches)
    run(project, "git", "add", ".")
    run(project, "git", "commit", "-qm", "own pictures")
    assert "data/own/pictures.dvc" in run(project, "git", "ls-files", "data/own")
    Repo().push()
    run(tmp_path, "git", "clone", "--quiet", str(project), str(colleague))
    monkeypatch.chdir(colleague)
    Repo().pull([*fetches], with_deps=True)
    assert len(list((colleague / "data" / "own" / "pictures").glob("*/*.png"))) == 3
    assert re.findall(r"Running stage '(.*)'", run(colleague, "dvc", "repro", *fetches)) == ["check"]
    Repo().imp(str(project), "data/own/pictures", out="data/own/others")
    set_params(colleague, {"data.images.path": "data/own/others"})
    assert "Running stage 'fetch@images'" in run(colleague, "dvc", "repro", "fetch@images")
    assert run(colleague, "git", "status", "--porcelain", "--", "data/own").split() == [
        *("M", "data/own/.gitignore"),
        *("??", "data/own/others.dvc"),
    ]
