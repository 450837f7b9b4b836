"""pipeline verify: what DVC's cache holds, in a small project of two stages."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from pipeline.__main__ import main
from pipeline.artifacts import ArtifactError
from pipeline.history import dvc_cache

STAGES = """
stages:
  first:
    cmd: mkdir folder && printf a > folder/a && printf b > folder/b && printf c > kept
    outs: [folder, {kept: {cache: false}}]
  second:
    cmd: cat folder/a folder/b > joined
    deps: [folder]
    outs: [joined]
"""
A, JOINED = "0cc175b9c0f1b6a831c399e269772661", "187ef4436122d1cc2f40dc2b92f0eba0"  # RFC 1321: of "a", and of "ab"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without git that was reproduced once."""
    (tmp_path / "dvc.yaml").write_text(STAGES)
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).reproduce()
    return tmp_path


def find(folder: Path, md5: str, suffix: str = "") -> Path:
    """Return the object of an md5, made writable."""
    path = folder / ".dvc" / "cache" / "files" / "md5" / md5[:2] / f"{md5[2:]}{suffix}"
    path.chmod(0o644)
    return path


@pytest.mark.fault(5, 14)
def test_a_whole_cache_a_missing_object_and_a_broken_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    assert capsys.readouterr().out == "4 objects of 3 outputs: none missing or broken\n"
    dvc_cache.require_inputs("second")
    broken = find(project, JOINED)
    broken.write_bytes(b"aB")
    broken.chmod(0o444)  # DVC takes a file of this mode for whole
    find(project, A).unlink()
    assert main(["verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"folder/a: its object {A} is not in DVC's cache")
    assert lines[1].startswith("joined: ")
    assert lines[1].endswith(f"is broken: expected md5 {JOINED}, found 081b1f3a41c98110994e1b45a4a886ee")
    assert lines[2:] == ["4 objects of 3 outputs: 2 missing or broken"]
    assert main(["verify", "kept"]) == 0
    with pytest.raises(
        ArtifactError, match=f"inputs of second; free space, then `dvc commit first`:\n  folder/a: .*{A}"
    ):
        dvc_cache.require_inputs("second")
    dvc_cache.require_inputs("first")  # which reads nothing


def test_a_broken_list_of_a_folder_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder: Any = next(out for out in dvc_cache.list_outputs() if out.def_path == "folder")
    listed = find(project, folder.hash_info.value.removesuffix(".dir"), ".dir")
    listed.write_text(json.dumps(json.loads(listed.read_text())[:1]))
    assert main(["verify"]) == 1
    assert f"folder: {listed} is broken" in capsys.readouterr().out


def test_a_project_that_was_never_reproduced_has_nothing_to_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dvc.yaml").write_text(STAGES)
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True)
    assert main(["verify"]) == 0
    assert "0 objects" in capsys.readouterr().out


def test_a_file_that_dvc_add_tracks_stops_no_stage_and_is_verified(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "notes.pdf").write_text("a")
    Repo().add("notes.pdf")
    dvc_cache.require_inputs("second")
    assert main(["verify"]) == 0
    assert capsys.readouterr().out == "5 objects of 4 outputs: none missing or broken\n"
    find(project, A).unlink()  # which both outputs hold
    assert main(["verify", "notes.pdf"]) == 1
    assert f"notes.pdf: its object {A} is not in DVC's cache" in capsys.readouterr().out


def test_a_text_that_dvc_2_hashed_counts_with_the_ends_of_lines_that_it_was_hashed_with(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a\r\nb\r\n")
    expected = hashlib.md5(b"a\nb\n", usedforsecurity=False).hexdigest()
    assert dvc_cache.Entry("text", expected, path, "md5-dos2unix").explain(hashed=True) == ""
    assert "is broken" in dvc_cache.Entry("text", expected, path).explain(hashed=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: shutil.rmtree(".dvc"), "you are not inside of a DVC repository"),
        (lambda: Path(".dvc/config").write_text(""), "is not a git repository"),
        (lambda: Path("dvc.yaml").write_text("stages: ["), "unable to read: 'dvc.yaml'"),
        (lambda: Path("dvc.yaml").write_text("stages: {a: {cmd: 'echo ${b}'}}"), "Could not find 'b'"),
        (lambda: Path("notes.pdf.dvc").write_text("outs: 7"), "'./notes.pdf.dvc' validation failed"),
    ],
)
def test_a_project_that_dvc_cannot_read_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[], object],
    message: str,
) -> None:
    (tmp_path / "dvc.yaml").write_text(STAGES)
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True)
    change()
    assert main(["verify"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: DVC cannot read the project in {tmp_path}: ")
    assert message in line


@pytest.mark.parametrize("command", [["prove", "HEAD"], ["reproduce"], ["compare", "HEAD:gan", "HEAD:vae"]])
@pytest.mark.usefixtures("workdir")
def test_a_command_that_needs_git_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(command) == 1
    assert capsys.readouterr().err == "error: git: not installed, or not in PATH\n"


@pytest.mark.usefixtures("project")
def test_a_path_names_outputs_around_it_or_below_it_and_another_one_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path, line in (("folder/a", "3 objects of 1 outputs"), ("joined", "1 objects of 1 outputs")):
        assert main(["verify", path]) == 0
        assert capsys.readouterr().out.startswith(line)
    assert main(["verify", "joined", "joinde"]) == 1
    assert "error: joinde: expected an output of dvc.lock" in capsys.readouterr().err
