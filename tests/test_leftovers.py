"""What a crash leaves behind is found, explained, and repaired only when asked to."""

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline import artifacts, leftovers
from pipeline.__main__ import main
from pipeline.record import Record
from pipeline.tracking import Mirror, connect
from pipeline.training import STATE
from tests.test_tracking import ABOUT


@pytest.fixture
def killed(workdir: Path) -> Record:
    """A training that was killed without a word: its record and its MLflow run say RUNNING."""
    record = Record(workdir / STATE / "train-gan" / "0123" / "record", json.loads(json.dumps(ABOUT)))
    record.log(1, {"loss": 1.0})
    mirror = Mirror(record)
    mirror.send()
    return record


def status_in_mlflow() -> str:
    client, experiment = connect()
    (run,) = client.search_runs([experiment])
    return str(run.info.status)


def test_a_clean_folder_has_nothing(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert workdir.exists()
    assert main(["doctor"]) == 0
    assert "nothing waits for repair" in capsys.readouterr().out


@pytest.mark.usefixtures("killed")
@pytest.mark.fault(26)
def test_a_run_killed_without_a_word_is_closed_when_asked_and_not_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    assert "killed without a word; MLflow shows it RUNNING" in capsys.readouterr().out
    assert status_in_mlflow() == "RUNNING"
    assert main(["doctor", "--fix"]) == 0
    assert status_in_mlflow() == "KILLED"
    assert main(["doctor"]) == 0
    assert "an interrupted training (KILLED)" in capsys.readouterr().out


def test_a_training_that_runs_now_is_left_alone(killed: Record) -> None:
    with FileLock(killed.folder.parents[1] / "lock"):
        assert main(["doctor", "--fix"]) == 0
    assert status_in_mlflow() == "RUNNING"


def test_half_written_files_are_removed_and_others_stay(workdir: Path) -> None:
    whole = workdir / artifacts.RAW / "images" / "a.gz"
    partial = whole.with_name("b.gz.part")
    whole.parent.mkdir(parents=True)
    for path in (whole, partial):
        path.write_bytes(b"x")
    assert main(["doctor"]) == 1
    assert partial.exists()
    assert main(["doctor", "--fix"]) == 0
    assert (whole.exists(), partial.exists()) == (True, False)


@pytest.mark.parametrize(
    "content", ['{"a": {"write": {"pid": 999999999', '{"a": {"write": {"pid": 999999999, "cmd": "dvc"}}}']
)
@pytest.mark.fault(45)
def test_dead_or_cut_off_locks_of_dvc_are_explained_and_removed(workdir: Path, content: str) -> None:
    path = workdir / leftovers.DVC_LOCKS
    path.parent.mkdir(parents=True)
    path.write_text(content)
    (found,) = leftovers.find_dvc_locks()
    assert "is gone" in found.meaning or "cut off" in found.meaning
    assert main(["doctor", "--fix"]) == 0
    assert not path.exists()


def test_locks_of_a_living_process_are_left_alone(workdir: Path) -> None:
    path = workdir / leftovers.DVC_LOCKS
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"a": {"write": {"pid": os.getpid(), "cmd": "dvc"}}}))
    assert list(leftovers.find_dvc_locks()) == []
    assert main(["doctor", "--fix"]) == 0
    assert path.exists()
