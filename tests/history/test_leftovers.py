"""What a crash leaves behind is found, explained, and repaired only when asked to."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.exceptions import DvcException
from dvc.fs import localfs
from dvc.lock import LockError
from dvc.rwlock import rwlock
from filelock import FileLock

from pipeline import artifacts
from pipeline.__main__ import main
from pipeline.artifacts import STATE
from pipeline.history import leftovers
from pipeline.history.mlflow_store import connect
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record
from pipeline.runtime import checkpoints
from tests.conftest import ROOT
from tests.history.test_mlflow_sync import ABOUT


@pytest.fixture
def killed(workdir: Path) -> Record:
    """A training that was killed without a word: its record and its MLflow run say RUNNING."""
    record = Record(workdir / STATE / "train-gan" / "0123" / "record", json.loads(json.dumps(ABOUT)))
    record.log(1, {"loss": 1.0})
    sync = MlflowSync(record)
    sync.send()
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


@pytest.mark.fault(55)
def test_a_torn_line_or_a_broken_record_stops_neither_doctor_nor_the_next_training(
    killed: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    with (killed.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "va\x00\n')
    broken = killed.folder.parents[1] / "4567" / "record" / "run.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    assert main(["doctor", "--fix"]) == 1
    output = capsys.readouterr().out
    assert "an interrupted training without its record: .state/train-gan/4567/record/run.json: not a complete" in output
    assert status_in_mlflow() == "KILLED"
    new = killed.folder.parents[1] / "new"
    assert leftovers.close_abandoned(new, ABOUT) == {"follows": killed.about["id"]}


def test_a_training_that_runs_now_is_left_alone(killed: Record) -> None:
    with FileLock(killed.folder.parents[1] / "lock"):
        assert main(["doctor", "--fix"]) == 0
    assert status_in_mlflow() == "RUNNING"


def test_half_written_files_are_removed_and_others_stay(workdir: Path) -> None:
    whole = workdir / artifacts.RAW / "images" / "a.gz"
    partial = whole.with_name("b.gz.part")
    whole.parent.mkdir(parents=True)
    mine = [workdir / "data" / "own" / "a.part", workdir / "data" / "scans.tmp" / "a.png"]
    for path in (whole, partial, *mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert main(["doctor"]) == 1
    assert partial.exists()
    assert main(["doctor", "--fix"]) == 0
    assert (whole.exists(), partial.exists()) == (True, False)
    assert all(path.exists() for path in mine)


def test_what_a_running_training_writes_is_left_alone(workdir: Path) -> None:
    folder = workdir / STATE / "train-gan"
    partial = folder / "0123" / "partial.tmp"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x")
    with FileLock(folder / "lock"):
        assert main(["doctor", "--fix"]) == 0
        assert partial.exists()
    assert main(["doctor", "--fix"]) == 0
    assert not partial.exists()


def test_a_feature_networks_interrupted_training_is_explained_and_stays(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = workdir / STATE / "networks-classifier" / "0123"
    state.mkdir(parents=True)
    checkpoint = state / "step-000000005.ckpt"
    checkpoint.write_bytes(b"x")
    checkpoint.with_suffix(".ckpt.sha256").write_text(artifacts.digest(checkpoint), encoding="ascii")
    assert main(["doctor", "--fix"]) == 0
    assert "`dvc repro networks@classifier` goes on from step 5" in capsys.readouterr().out
    assert checkpoint.exists()
    with FileLock(state.parent / "lock"):
        assert [found.meaning for found in leftovers.find_all()] == ["a process is training this now"]


def test_a_finished_trainings_state_that_was_removed_in_part_goes_as_a_whole(workdir: Path) -> None:
    done = workdir / STATE / "train-gan" / "0123.tmp"
    Record(done / "record", json.loads(json.dumps(ABOUT)))
    (done / "partial.tmp").write_bytes(b"x")
    (found,) = leftovers.find_all()
    assert found.what == str(STATE / "train-gan" / "0123.tmp")
    assert main(["doctor", "--fix"]) == 0
    assert not done.exists()


# --- DVC's locks -------------------------------------------------------------


@pytest.fixture
def locks(workdir: Path) -> Path:
    path = workdir / leftovers.DVC_LOCKS
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def start_dvc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], int]]:
    """Start a process that is called dvc, in a folder."""
    script = tmp_path_factory.mktemp("bin") / "dvc"
    script.write_text("print(1, flush=True); import time; time.sleep(60)")
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path) -> int:
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen([sys.executable, str(script)], cwd=folder, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout
        process.stdout.readline()
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


def holder(pid: int) -> dict[str, object]:
    return {"pid": pid, "cmd": "dvc repro"}


def take(path: Path, file: str) -> None:
    """Take the lock that `dvc repro` takes to write a file."""
    with rwlock(str(path.parent), localfs, "dvc repro", [], [file], False):
        pass


@pytest.mark.fault(45)
@pytest.mark.parametrize("content", ['{"write": {"/a": {"pid": 999999999', "", '{"write": {"/a": 3}}', "[]"])
def test_a_table_of_locks_that_is_cut_off_is_explained_and_removed(locks: Path, content: str) -> None:
    locks.write_text(content)
    with pytest.raises(DvcException):
        take(locks, "/a")
    (found,) = leftovers.find_dvc_locks()
    assert "cut off, and every dvc command stops at it" in found.meaning
    assert main(["doctor"]) == 1
    assert locks.read_text() == content
    assert main(["doctor", "--fix"]) == 0
    take(locks, "/a")


@pytest.mark.fault(45)
def test_a_lock_whose_process_id_is_another_programs_now_is_removed(locks: Path) -> None:
    locks.write_text(json.dumps({"write": {"/a": holder(os.getppid())}}))
    with pytest.raises(LockError, match="is busy"):
        take(locks, "/a")
    (found,) = leftovers.find_dvc_locks()
    assert f"names process {os.getppid()}, which is another program now" in found.meaning
    assert main(["doctor", "--fix"]) == 0
    take(locks, "/a")


@pytest.mark.fault(45)
def test_dead_locks_go_and_those_of_a_living_dvc_stay(
    locks: Path, start_dvc: Callable[[Path], int], tmp_path: Path
) -> None:
    living = start_dvc(tmp_path)
    table = {
        "write": {"/a": holder(living), "/b": holder(999999999)},
        "read": {"/c": [holder(living), holder(999999998)], "/d": [holder(999999999)]},
    }
    locks.write_text(json.dumps(table))
    assert sum("which is gone" in found.meaning for found in leftovers.find_dvc_locks()) == 2
    assert main(["doctor", "--fix"]) == 0
    assert json.loads(locks.read_text()) == {"write": {"/a": holder(living)}, "read": {"/c": [holder(living)]}}
    with pytest.raises(LockError, match="is busy"):
        take(locks, "/a")


@pytest.mark.fault(45)
@pytest.mark.parametrize("folder", [".", "benchmarks"])
def test_while_a_dvc_works_here_or_below_nothing_of_its_is_touched(
    locks: Path, start_dvc: Callable[[Path], int], workdir: Path, folder: str
) -> None:
    start_dvc(workdir / folder)
    locks.write_text("{")
    partial = workdir / artifacts.RAW / "images" / "b.gz.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x")
    assert main(["doctor", "--fix"]) == 0
    assert locks.exists()
    assert partial.exists()


# --- dvc.lock ----------------------------------------------------------------

RESULTS = (ROOT / "dvc.lock").read_text()


@pytest.mark.fault(46)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (RESULTS.replace("stages:", "<<<<<<< HEAD\nstages:\n=======\n>>>>>>> other", 1), "the marks of a merge"),
        ("", "it is empty"),
        (RESULTS[: RESULTS.rindex("md5: ") + 12], "cut off or broken"),  # within a hash
        (RESULTS[: RESULTS.rindex("      md5: ")], "cut off or broken"),  # a file without its hash
        (RESULTS[: RESULTS.rindex("    outs:\n")].rsplit("    deps:", 1)[0], "cut off or broken"),
        ("schema: '2.0'\nstages: [", "cut off or broken"),
        ("just text\n", "cut off or broken"),
    ],
)
def test_a_broken_dvc_lock_is_explained_and_left_to_its_owner(
    workdir: Path, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workdir / "dvc.lock"
    path.write_text(content)
    assert main(["doctor", "--fix"]) == 1
    output = capsys.readouterr().out
    assert "dvc.lock: it" in output
    assert said in output
    assert "`git checkout -" in output
    assert path.read_text() == content


def test_the_shipped_dvc_lock_is_whole(workdir: Path) -> None:
    (workdir / "dvc.lock").write_text(RESULTS)
    assert list(leftovers.find_broken_results()) == []


@pytest.mark.usefixtures("workdir")
def test_an_experiment_that_trains_now_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    folder = STATE / "train-gan"
    for name in ("held", "killed"):
        Record(folder / name / "record", json.loads(json.dumps(ABOUT)))
    with FileLock(checkpoints.name_lock(folder / "held")):
        meanings = {Path(found.what).name: found.meaning for found in leftovers.find_all()}
        leftovers.close_abandoned(folder / "new", ABOUT)
    assert meanings["held"] == "an experiment is training this now"
    assert meanings["killed"].startswith("a training that was killed without a word")
    status = {name: Record(folder / name / "record").about["status"] for name in ("held", "killed")}
    assert status == {"held": "RUNNING", "killed": "KILLED"}
    assert "killed does not fit" in capsys.readouterr().out
