"""The record of a run: whole whatever happens, one run an experiment, and the reason that it ended."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.artifacts import STATE
from pipeline.history.mlflow_store import connect
from pipeline.history.record import Record, describe_process, is_gone
from pipeline.history.recorder import Recorder
from pipeline.runtime.preemption import PreemptedError
from pipeline.stages import train

ABOUT: dict[str, Any] = {
    "name": "vae",
    "tags": {},
    "parameters": {"model.steps": 12},
    "config": {},
    "datasets": [],
    "environment": {},
}


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "record", json.loads(json.dumps(ABOUT)))


def test_a_full_disk_while_a_record_is_rewound_leaves_it_as_it_was(record: Record) -> None:
    for step in range(1, 101):
        record.log(step, {"loss": 1 / step})
    before = record.read()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            record.rewind(90)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert record.read() == before


def test_reading_on_takes_whole_lines_from_where_the_last_reading_ended(record: Record) -> None:
    record.log(1, {"loss": 1.0})
    lines, end = record.read_on("metrics", 0)
    assert [line["step"] for line in lines] == [1]
    record.log(2, {"loss": 0.5})
    with (record.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "val')
    lines, end = record.read_on("metrics", end)
    assert [line["step"] for line in lines] == [2]
    assert record.read_on("metrics", end) == ([], end)


@pytest.mark.fault(26)
def test_an_abandoned_record_is_killed_and_ended_with_its_last_line(record: Record) -> None:
    record.log(1, {"loss": 1.0})
    record.abandon()
    again = Record(record.folder)
    assert again.about["status"] == "KILLED"
    assert again.about["ended"] == record.read()[-1]["time"]
    assert again.about["tags"]["failure"] == "the process ended without a word"


def test_a_record_that_goes_on_is_running_again_on_disk(record: Record) -> None:
    record.finish("FAILED", failure="ValueError: no")
    Record(record.folder).reopen({"git.dirty": "true"})
    about = json.loads((record.folder / "run.json").read_text())
    assert about["status"] == "RUNNING"
    assert "ended" not in about
    assert about["tags"] == {"git.dirty": "true"}
    assert about["process"] == describe_process()
    assert about["totals"]["seconds"] >= 0  # costs of the first attempt count


def test_a_process_is_gone_only_if_this_machine_says_so() -> None:
    host, space, number, _ = describe_process().split(" ")
    assert not is_gone(describe_process())
    assert is_gone(f"{host} {space} {number} 1000000000")  # the number belongs to another process now
    assert is_gone(f"{host} {space} 999999999 1000000000")
    assert not is_gone(f"another {space} 999999999 1000000000")
    assert not is_gone("")


# --- Around a training -------------------------------------------------------


@pytest.fixture
def prepared(prepared: Path, tiny: None) -> Path:
    """A working folder with prepared digits and trainings of a second."""
    del tiny
    return prepared


def runs() -> list[Any]:
    client, experiment = connect()
    return list(client.search_runs([experiment]))


class Killed(BaseException):
    """A kill, as far as the files are concerned: nothing after it is executed."""


@pytest.mark.usefixtures("prepared")
def test_a_training_killed_between_its_output_and_the_end_of_its_state_goes_on_in_the_same_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kill(function: Callable[..., Any]) -> Callable[..., Any]:
        def act(source: Any, *arguments: Any, **options: Any) -> None:
            function(source, *arguments, **options)
            if Path(source).name == "record":
                raise Killed

        return act

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", kill(shutil.copytree))
        patch.setattr(shutil, "move", kill(shutil.move))
        with pytest.raises(Killed):
            train.main("vae")
    first = Record(artifacts.RUNS / "vae" / "record").about["id"]
    train.main("vae")
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["record.id"] == first == Record(artifacts.RUNS / "vae" / "record").about["id"]
    steps = [line["step"] for line in Record(artifacts.RUNS / "vae" / "record").read() if "loss" in line["values"]]
    assert steps == list(range(1, 13))
    assert [path.name for path in (STATE / "train-vae").iterdir()] == ["lock"]


@pytest.mark.fault(0, 26)
@pytest.mark.usefixtures("prepared")
def test_a_training_stopped_then_crashed_behind_its_checkpoint_ends_as_one_run_with_one_value_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record_step = Recorder.on_train_batch_end

    def stop(self: Recorder, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        record_step(self, trainer, module, outputs, batch, index)
        if index + 1 == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        if index + 1 == 9:
            msg = "crash"
            raise InterruptedError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_train_batch_end", stop)
        with pytest.raises(PreemptedError):
            train.main("vae")
        with pytest.raises(InterruptedError):
            train.main("vae")  # goes on from step 5, and nothing is saved after it
    (run,) = runs()
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "InterruptedError: crash")
    train.main("vae")
    (run,) = runs()
    client, _ = connect()
    steps = sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss"))
    assert steps == list(range(1, 13))
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags


@pytest.mark.fault(7, 25)
@pytest.mark.usefixtures("prepared")
def test_an_error_of_the_training_is_what_the_user_sees_though_the_server_is_dead_and_the_disk_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        msg = "the step's own error"
        raise ValueError(msg)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(Recorder, "on_train_batch_end", fail)
    try:
        with pytest.raises(ValueError, match="the step's own error"):
            train.main("vae")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.fault(25)
@pytest.mark.usefixtures("prepared")
def test_a_failed_training_says_why_in_its_record_and_in_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        msg = "the step's own error"
        raise ValueError(msg)

    monkeypatch.setattr(Recorder, "on_train_batch_end", fail)
    with pytest.raises(ValueError, match="the step's own error"):
        train.main("vae")
    (run,) = runs()
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "ValueError: the step's own error")
    (path,) = STATE.glob("train-vae/*/record/run.json")
    assert Record(path.parent).about["tags"]["failure"] == "ValueError: the step's own error"


@pytest.mark.fault(26, 40)
def test_changed_params_start_a_new_run_that_names_what_changed_and_the_old_one_is_closed(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = Record(
        prepared / STATE / "train-vae" / "0123" / "record",
        {**json.loads(json.dumps(ABOUT)), "parameters": {"model.steps": 11}},
    )
    done = Record(prepared / STATE / "train-vae" / "4567.tmp" / "record", json.loads(json.dumps(ABOUT)))
    train.main("vae")
    output = capsys.readouterr().out
    assert "vae: a new run; the interrupted one in" in output
    assert "model.steps was 11, is 12" in output
    assert Record(old.folder).about["status"] == "KILLED"
    assert not done.folder.exists()  # of a training that had finished
    (run,) = runs()
    assert run.data.tags["follows"] == old.about["id"]
    about = Record(artifacts.RUNS / "vae" / "record").about
    assert about["config"]["metric"]["kid_subset_size"] == 50  # how it is measured is in the config too
    assert about["config"]["network"]["network"] == "classifier"
