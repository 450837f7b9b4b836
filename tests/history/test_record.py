"""The record of a run: whole whatever happens, one run an experiment, and the reason that it ended."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import artifacts
from pipeline.artifacts import STATE
from pipeline.history import record as record_module
from pipeline.history.mlflow_store import connect
from pipeline.history.record import Record, append_lines, describe_process, is_gone
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


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond some bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_while_a_record_is_rewound_leaves_it_as_it_was(record: Record) -> None:
    for step in range(1, 101):
        record.log(step, {"loss": 1 / step})
    before = record.read()
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        record.rewind(90)
    assert record.read() == before


@pytest.mark.fault(54)
def test_a_disk_that_is_full_for_seconds_costs_the_record_nothing(
    record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    record.log(1, {"loss": 1.0})
    record.log_load({"cpu": 0.5})
    files = {path: path.read_bytes() for path in record.folder.iterdir()}
    with files_of_at_most(len(files[record.folder / "metrics.jsonl"]) + 10):  # some bytes of a line find room
        record.log(2, {"loss": 0.5, "kl": float("inf")})
        record.log_load({"cpu": 0.6})
        record.exhibit("samples", 2, ".txt", b"x" * 500)
        record.log(3, {"loss": 0.4})
        assert {path: path.read_bytes() for path in files} == files
        assert [line["step"] for line in record.read()] == [1, 2, 3]  # alarms see them
        assert record.read_on("metrics", 0)[1] == len(files[record.folder / "metrics.jsonl"])  # MLflow does not
        with pytest.raises(OSError, match="File too large"):
            record.finish("FINISHED")  # which no one could read
    assert caplog.text.count("waits in memory until there is space") == 1
    record.log(4, {"loss": 0.3})
    again = Record(record.folder)
    assert [line["values"]["loss"] for line in again.read()] == [1.0, 0.5, 0.4, 0.3]
    assert [line["step"] for line in again.read("system")] == [0, 1]
    assert [path.read_bytes() for path in again.list_exhibits().values()] == [b"x" * 500]
    assert again.about["tags"]["nonfinite"] == "step 2: kl"


TORN = [b'{"step": 3, "val{"step": 4, "time": 1.0, "values": {}}', b"\x00" * 40, b"\xff\xfe", b"[1]", b"[" * 50_000]
TORN += [b'{"step": "3", "time": 1.0, "values": {}}', b'{"step": 3, "time": 1.0, "values": {"loss": "low"}}', b"NaN"]


@pytest.mark.fault(55)
def test_torn_lines_are_passed_over_with_one_warning_and_gone_after_a_resume(
    record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    record.log(1, {"loss": 1.0})
    append_lines(record.folder / "metrics.jsonl", b"\n".join(TORN) + b"\n")
    record.log(2, {"loss": 0.5})
    again = Record(record.folder)
    for _ in range(3):
        assert [line["step"] for line in again.read()] == [1, 2]
    assert caplog.text.count(f"metrics.jsonl: {len(TORN)} lines are torn") == 1
    again.rewind(2)
    assert [json.loads(line)["step"] for line in (record.folder / "metrics.jsonl").read_text().splitlines()] == [1, 2]


@pytest.mark.fault(55)
def test_a_line_behind_one_that_was_cut_off_begins_on_its_own(record: Record) -> None:
    record.log(1, {"loss": 1.0})
    with (record.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "val')  # of a power cut
    record.log(3, {"loss": 0.5})
    assert [line["step"] for line in record.read()] == [1, 3]


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
    host, space, number, start = describe_process().split(" ")
    assert not is_gone(describe_process())
    assert is_gone(f"{host} {space} {number} {start[:-1]}")  # the number belongs to another process now
    assert is_gone(f"{host} {space} 999999999 {start}")
    assert not is_gone(f"another {space} 999999999 {start}")
    assert not is_gone("")


@pytest.mark.fault(58)
def test_a_clock_that_is_set_back_ends_no_living_run_and_none_before_its_start(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, boot = record.about["started"], psutil.boot_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot - 3600)  # Linux moves it with the clock
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot - 3600)
    monkeypatch.setattr(record_module.time, "time", lambda: now - 3600)
    assert not is_gone(record.about["process"])
    record.finish("FINISHED")
    assert record.about["ended"] >= record.about["started"]
    assert 0 <= record.about["totals"]["seconds"] < 60


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
    assert steps == list(range(1, 5))
    assert [path.name for path in (STATE / "train-vae").iterdir()] == ["lock"]


@pytest.mark.fault(0, 26)
@pytest.mark.usefixtures("prepared")
def test_a_training_stopped_then_crashed_behind_its_checkpoint_ends_as_one_run_with_one_value_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record_step = Recorder.on_train_batch_end

    def stop(self: Recorder, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        record_step(self, trainer, module, outputs, batch, index)
        if index + 1 == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        if index + 1 == 3:
            msg = "crash"
            raise InterruptedError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_train_batch_end", stop)
        with pytest.raises(PreemptedError):
            train.main("vae")
        with pytest.raises(InterruptedError):
            train.main("vae")  # goes on from step 2, and nothing is saved after it
    (run,) = runs()
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "InterruptedError: crash")
    train.main("vae")
    (run,) = runs()
    client, _ = connect()
    steps = sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss"))
    assert steps == list(range(1, 5))
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
    assert "model.steps was 11, is 4" in output
    assert Record(old.folder).about["status"] == "KILLED"
    assert not done.folder.exists()  # of a training that had finished
    (run,) = runs()
    assert run.data.tags["follows"] == old.about["id"]
    about = Record(artifacts.RUNS / "vae" / "record").about
    assert about["config"]["metric"]["kid_subset_size"] == 50  # how it is measured is in the config too
    assert about["config"]["network"]["network"] == "classifier"
