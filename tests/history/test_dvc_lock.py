"""dvc.lock is read as DVC writes it, and what is not a lock is refused by its place."""

from pathlib import Path

import pytest
from dvc.repo import Repo

from pipeline.artifacts import ArtifactError
from pipeline.history.dvc_lock import list_hashes, parse_stages, read_stages

STAGES = "stages:\n  copy:\n    foreach: [a]\n    do:\n      cmd: cp in out\n      deps: [in]\n      outs: [out]\n"


def test_the_hashes_are_those_that_dvc_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_stages() == {}
    Path("dvc.yaml").write_text(STAGES, encoding="utf-8")
    Path("in").write_text("hello", encoding="utf-8")
    Repo.init(no_scm=True).close()
    with Repo() as repo:
        repo.reproduce()
    stages = read_stages()
    md5 = "5d41402abc4b2a76b9719d911017c592"  # of hello
    assert list_hashes(stages, "copy@a", "deps") == {"in": md5}
    assert list_hashes(stages, "copy@a", "outs") == {"out": md5}
    assert list_hashes(stages, "copy@b", "outs") == {}


@pytest.mark.parametrize("text", ["stages: [", "just text\n", "stages: 3\n", "- a\n"])
def test_what_is_not_a_lock_is_refused_by_its_place(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"^HEAD:dvc\.lock: "):
        parse_stages(text, "HEAD:dvc.lock")


def test_a_stage_that_dvc_has_not_finished_has_no_hashes() -> None:
    assert list_hashes({"copy": {"cmd": "true"}, "other": None}, "copy", "outs") == {}
    assert list_hashes({"copy": {"outs": [{"path": "out"}]}}, "copy", "outs") == {}
    assert parse_stages("schema: '2.0'\n", "dvc.lock") == {}
    assert parse_stages("schema: '2.0'\nstages:\n", "dvc.lock") == {}
