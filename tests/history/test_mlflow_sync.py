"""MLflow from the record: one run whatever happens, everything in it, an outage stops nothing."""

import io
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline import artifacts
from pipeline.history import mlflow_run
from pipeline.history.mlflow_store import connect
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record, describe_environment, describe_lineage, describe_process
from pipeline.history.results import Results
from tests.conftest import ROOT

ABOUT: dict[str, Any] = {
    "name": "gan",
    "parameters": {"model.steps": 3, "model.note": "x" * 5000},
    "config": {"model": {"steps": 3}},
    "tags": {"dvc.stage": "train@gan"},
    "datasets": [
        {
            "name": "images (mnist5k)",
            "path": "data/prepared/images",
            "context": "train",
            "md5": "d41d8cd98f00b204e9800998ecf8427e.dir",
            "sha256": "0" * 64,
            "examples": 7,
        }
    ],
    "environment": {"torch": "2.14.0"},
}


@pytest.fixture
def record(workdir: Path) -> Record:
    return Record(workdir / "record", json.loads(json.dumps(ABOUT)))


def runs() -> list[Any]:
    client, experiment = connect()
    return list(client.search_runs([experiment]))


def history(key: str) -> list[tuple[int, float]]:
    """Every value that the only run has of a metric, in the order of their steps."""
    (run,) = runs()
    return sorted((metric.step, metric.value) for metric in MlflowClient().get_metric_history(run.info.run_id, key))


def test_a_run_shows_parameters_metrics_by_step_exhibits_data_and_status(record: Record, workdir: Path) -> None:
    sync = MlflowSync(record).start()
    for step in (1, 2, 3):
        record.log(step, {"loss": 1 / step})
    record.exhibit("samples", 2, ".png", draw())
    record.exhibit("samples", 3, ".txt", b"to be")
    record.finish("FINISHED", kept_parameters=5)
    sync.finish()
    (run,) = runs()
    client = MlflowClient()
    assert run.info.run_name == "gan"
    assert run.info.status == "FINISHED"
    assert run.data.params["model.note"] == "x" * 5000  # Lightning's logger would cut it at 250
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert run.data.metrics["cost/kept_parameters"] == 5
    assert run.data.metrics["cost/seconds"] == record.about["totals"]["seconds"] > 0
    assert run.data.tags["dvc.stage"] == "train@gan"
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest.startswith("d41d8cd98f00b204e9800998ecf8427e")
    assert any("samples" in item.path and item.path.endswith(".png") for item in walk(client, run.info.run_id))
    assert json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.json")) == ABOUT["config"]
    assert (workdir / "mlflow.db").exists()
    assert run.info.artifact_uri.startswith((workdir / "mlartifacts").as_uri())


def walk(client: MlflowClient, run_id: str, path: str = "") -> list[Any]:
    found = []
    for item in client.list_artifacts(run_id, path):
        found += walk(client, run_id, item.path) if item.is_dir else [item]
    return found


def test_a_second_process_continues_the_same_run_without_repeating_a_step(record: Record) -> None:
    record.log(1, {"loss": 3.0})
    MlflowSync(record).send()
    record.log(2, {"loss": 2.0})
    record.finish("FINISHED")
    MlflowSync(Record(record.folder)).finish(Results({"fid_classifier": 8.0}))
    (run,) = runs()
    history = MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 3.0), (2, 2.0)]
    assert run.data.metrics["quality/fid_classifier"] == 8
    assert run.info.status == "FINISHED"


def test_a_second_line_of_a_step_is_sent_too(record: Record) -> None:
    sync = MlflowSync(record)
    record.log(1, {"loss": 3.0})
    sync.send()
    record.log(1, {"validation_nats": 2.0})
    sync.send()
    (run,) = runs()
    assert run.data.metrics == {"train/loss": 3.0, "train/validation_nats": 2.0}


def test_a_lost_store_is_filled_again_from_the_record(
    record: Record, workdir: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.log(1, {"loss": 3.0})
    record.finish("FINISHED")
    MlflowSync(record).finish()
    shutil.copy(empty_store, workdir / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir / 'mlflow.db'}")
    MlflowSync(Record(record.folder)).finish()
    (run,) = runs()
    assert run.data.metrics["train/loss"] == 3
    assert run.data.tags["record.id"] == record.about["id"]


@pytest.mark.fault(7)
def test_an_absent_server_is_one_warning_and_the_record_keeps_all(
    record: Record, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    sync = MlflowSync(record).start()
    record.log(1, {"loss": 3.0})
    record.finish("FAILED")
    sync.finish()
    assert [line["values"] for line in record.read()] == [{"loss": 3.0}]
    assert sum("MLflow is not reachable" in entry.message for entry in caplog.records) == 1


def test_a_deleted_experiment_is_named_and_not_taken_for_an_outage(
    record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    client, experiment = connect()
    client.delete_experiment(experiment)
    record.finish("FINISHED")
    sync = MlflowSync(record)
    sync.finish()
    assert sync.failed
    [message] = [entry.message for entry in caplog.records if "MLflow" in entry.message]
    assert message.startswith("MLflow's experiment 'generative-experiments' is deleted; `mlflow experiments restore")
    client.restore_experiment(experiment)
    MlflowSync(record).finish()
    assert client.search_runs([experiment])


def test_a_run_that_failed_and_then_finished_counts_both_attempts_and_keeps_no_failure(record: Record) -> None:
    record.finish("FAILED", failure="ValueError: no")
    MlflowSync(record).finish()
    (run,) = runs()
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "ValueError: no")
    first = record.about["totals"]
    again = Record(record.folder)
    again.finish("FINISHED")
    MlflowSync(again).finish()
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags
    assert again.about["totals"]["cpu_seconds"] > 2 * first["cpu_seconds"] > 0
    assert again.about["totals"]["seconds"] > first["seconds"]


def test_the_environment_names_what_equal_bits_depend_on() -> None:
    environment = describe_environment()
    assert environment["threads"] == str(torch.get_num_threads())
    assert environment["torch"] == torch.__version__.partition("+")[0]
    assert {"instruction_set", "lock_sha256", "processor", "python"} <= environment.keys()


@pytest.mark.parametrize("folder", [".", "benchmarks/families"])
def test_the_environment_has_the_lock_of_the_repository(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / folder)
    assert describe_environment()["lock_sha256"] == artifacts.digest(ROOT / "requirements.lock")


def test_lineage_names_commit_and_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train@gan")
    tags = describe_lineage()
    assert tags["dvc.stage"] == "train@gan"
    assert len(tags["mlflow.source.git.commit"]) == 40


# --- A tracker that fails ----------------------------------------------------


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield
    for thread in threading.enumerate():
        if thread.name == "tracker":
            thread.join()  # its connection is closed now; it must not reach the next test's store


@pytest.mark.fault(0, 7)
@pytest.mark.usefixtures("silent")
def test_a_server_that_never_answers_delays_neither_the_start_nor_the_end(
    record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    before = time.monotonic()
    sync = MlflowSync(record).start()
    record.log(1, {"loss": 3.0})
    record.finish("KILLED")
    sync.finish(seconds=0.5)
    assert time.monotonic() - before < 2
    assert sync.failed
    assert "MLflow does not answer; `pipeline sync` sends it the rest" in caplog.text


@pytest.mark.fault(7)
def test_a_store_that_is_no_database_is_a_warning(
    record: Record, workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (workdir / "mlflow.db").write_bytes(b"no database" * 1000)  # raises what is neither MLflow's nor an OSError
    record.finish("FINISHED")
    sync = MlflowSync(record)
    sync.finish()
    assert sync.failed
    assert "MLflow is not reachable" in caplog.text
    assert "is not a database" in caplog.text


@pytest.mark.fault(49)
def test_a_store_of_files_which_mlflow_refuses_is_a_warning(
    record: Record, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:./mlruns")  # what MLFlowLogger() takes
    record.finish("FINISHED")
    sync = MlflowSync(record)
    sync.finish()
    assert sync.failed
    assert "maintenance mode" in caplog.text


@pytest.mark.fault(7, 27)
def test_a_store_that_comes_back_gets_everything_once(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.history.mlflow_sync.SECONDS_BETWEEN_SENDS", 0.05)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    sync = MlflowSync(record).start()
    record.log(1, {"loss": 3.0})
    wait_for(lambda: sync.failed)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    wait_for(lambda: not sync.failed)
    record.log(2, {"loss": 2.0})
    record.finish("FINISHED")
    sync.finish()
    assert history("train/loss") == [(1, 3.0), (2, 2.0)]
    assert runs()[0].info.status == "FINISHED"


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.fault(27)
def test_steps_that_an_outage_left_out_are_filled_in_and_no_step_comes_twice(record: Record) -> None:
    for step in (1, 2, 3):
        record.log(step, {"loss": 1 / step, "kl": 0.5})
    MlflowSync(record).send()
    (run,) = runs()
    for step in (4, 5, 6):
        record.log(step, {"loss": 1 / step, "kl": 0.5})
    MlflowClient().log_metric(run.info.run_id, "train/loss", 1 / 6, step=6)  # another process sent the last one alone
    MlflowSync(record).send()
    assert history("train/loss") == [(step, pytest.approx(1 / step)) for step in range(1, 7)]
    assert history("train/kl") == [(step, 0.5) for step in range(1, 7)]


def test_a_run_whose_making_was_cut_off_is_completed(record: Record) -> None:
    client, experiment = connect()
    run = client.create_run(experiment, tags={"record.id": record.about["id"]})
    MlflowSync(record).send()
    (found,) = runs()
    assert found.info.run_id == run.info.run_id
    assert found.data.params["model.steps"] == "3"
    assert found.data.tags["environment.torch"] == "2.14.0"
    assert found.inputs.dataset_inputs
    assert "config.json" in [item.path for item in client.list_artifacts(run.info.run_id)]


def list_sent() -> list[str]:
    """The only run's exhibits as MLflow has them: <key> <step> of a picture, the path of another file."""
    (run,) = runs()
    paths = [item.path for item in walk(MlflowClient(), run.info.run_id)]
    pictures = [" ".join(Path(path).name.split("+")[0:3:2]) for path in paths if path.endswith(".png")]
    return sorted(pictures + [path for path in paths if path.startswith("exhibits")])


def draw() -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_suffix_alone_says_how_an_exhibit_is_sent(record: Record) -> None:
    for suffix, content in ((".png", draw()), (".txt", b"to be"), (".wav", b"RIFF"), (".glb", b"glTF")):
        record.exhibit("samples", 3, suffix, content)
    MlflowSync(record).send()
    files = [f"exhibits/samples/0000003{suffix}" for suffix in (".glb", ".txt", ".wav")]
    assert list_sent() == [*files, "train~samples 3"]


def test_exhibits_are_sent_once_by_all_processes_also_after_a_resume_and_from_a_clone(
    record: Record, workdir: Path
) -> None:
    for step in (1, 2):
        record.exhibit("samples", step, ".png", draw())
        record.exhibit("samples", step, ".txt", b"to be")
        MlflowSync(record).send()
    Record(record.folder).rewind(1)
    for _ in range(2):
        MlflowSync(Record(record.folder)).send()
    MlflowSync(Record(shutil.copytree(record.folder, workdir / "clone"))).send()
    pictures = [f"train~samples {step}" for step in (1, 2)]
    assert list_sent() == ["exhibits/samples/0000001.txt", "exhibits/samples/0000002.txt", *pictures]


def test_exhibits_of_an_older_version_are_sent_once(record: Record) -> None:
    """Its record has folders for images and texts."""
    for step in (1, 2):
        for folder, suffix, content in (("images", ".png", draw()), ("texts", ".txt", b"to be")):
            path = record.folder / folder / "samples" / f"{step:07d}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for _ in range(2):
        MlflowSync(Record(record.folder)).send()
    pictures = [f"train~samples {step}" for step in (1, 2)]
    assert list_sent() == ["exhibits/samples/0000001.txt", "exhibits/samples/0000002.txt", *pictures]


@pytest.mark.parametrize(("key", "suffix"), [("a/b", ".png"), ("", ".png"), ("ä", ".png"), ("a", "png"), ("a", ".A")])
def test_an_exhibit_that_mlflow_could_not_name_is_refused(key: str, suffix: str, record: Record) -> None:
    with pytest.raises(ValueError, match="exhibit: expected a key such as samples and a suffix such as"):
        record.exhibit(key, 1, suffix, b"")


def test_a_half_written_exhibit_is_no_exhibit(record: Record) -> None:
    record.exhibit("samples", 1, ".txt", b"to be")
    for name in ("0000002.txt.tmp", ".DS_Store", "notes.txt"):
        (record.folder / "exhibits" / "samples" / name).write_bytes(b"x")
    assert [(exhibit.key, exhibit.step, exhibit.suffix) for exhibit in record.list_exhibits()] == [
        ("samples", 1, ".txt")
    ]


@pytest.mark.usefixtures("workdir")
def test_two_machines_that_make_the_experiment_at_once_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = MlflowClient.get_experiment_by_name
    answers: list[Any] = []

    def ask_too_early(self: MlflowClient, name: str) -> Any:
        answers.append(ask(self, name))
        if len(answers) == 1:
            self.create_experiment(name)  # the other machine, after the answer
        return answers[-1]

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", ask_too_early)
    _, experiment = connect()
    assert answers[0] is None
    assert answers[1].experiment_id == experiment


# --- What the run shows ------------------------------------------------------


def test_an_evaluation_replaces_the_one_before_whatever_its_values(record: Record) -> None:
    record.finish("FINISHED")
    for value in (8.0, 5.0, 5.0):
        MlflowSync(record).finish(Results({"fid": value}, tags={"protocol": f"of {value}"}))
    (run,) = runs()
    assert run.data.metrics["quality/fid"] == 5
    assert run.data.tags["protocol"] == "of 5.0"
    assert history("quality/fid") == [(0, 5.0), (0, 8.0)]  # the third had nothing new


def test_an_evaluation_leaves_a_finished_run_finished(record: Record) -> None:
    record.finish("FINISHED")
    MlflowSync(record).finish()
    MlflowSync(Record(record.folder)).send()
    assert runs()[0].info.status == "FINISHED"


@pytest.mark.fault(26)
def test_a_run_that_goes_on_is_running_without_the_failure_and_with_the_tags_of_its_code(record: Record) -> None:
    record.finish("FAILED", failure="ValueError: no")
    MlflowSync(record).finish()
    again = Record(record.folder)
    again.reopen({"mlflow.source.git.commit": "0123"})
    MlflowSync(again).send()
    (run,) = runs()
    assert run.info.status == "RUNNING"
    assert "failure" not in run.data.tags
    assert run.data.tags["mlflow.source.git.commit"] == "0123"


@pytest.mark.fault(26)
def test_a_running_run_of_the_name_whose_process_is_gone_is_closed_and_linked(workdir: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    host, space, _, started = describe_process().split(" ")
    names = {
        "gone": ("gan", f"{host} {space} {gone.pid} {started}"),
        "reused": ("gan", " ".join([*describe_process().split(" ")[:3], "1000000000"])),
        "lives": ("gan", describe_process()),
        "elsewhere": ("gan", f"other-{host} {space} {gone.pid} {started}"),
        "other": ("vae", f"{host} {space} {gone.pid} {started}"),
    }
    records = {}
    for key, (name, process) in names.items():
        records[key] = Record(workdir / key, json.loads(json.dumps(ABOUT)) | {"name": name, "process": process})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlflow_run, "close_stale", lambda *_: None)
            MlflowSync(records[key]).send()
    new = Record(workdir / "new", json.loads(json.dumps(ABOUT)))
    MlflowSync(new).send()
    found = {run.data.tags["record.id"]: run for run in runs()}
    status = {key: found[record.about["id"]].info.status for key, record in records.items()}
    assert status == dict.fromkeys(names, "RUNNING") | {"gone": "KILLED", "reused": "KILLED"}
    assert found[records["gone"].about["id"]].data.tags["failure"] == "the process ended without a word"
    follows = found[new.about["id"]].data.tags["follows"]
    assert follows in {records["gone"].about["id"], records["reused"].about["id"]}


def test_the_machines_load_is_in_the_record_and_in_mlflow(record: Record) -> None:
    sync = MlflowSync(record).start()
    record.finish("FINISHED")
    sync.finish()
    again = Record(record.folder)
    sync = MlflowSync(again).start()
    again.finish("FINISHED")
    sync.finish()
    assert [line["step"] for line in again.read("system")] == [0, 1]
    assert [step for step, _ in history("system/cpu_utilization_percentage")] == [0, 1]
    (run,) = runs()
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0
    assert run.data.metrics["system/disk_available_megabytes"] > 0


@pytest.mark.fault(38)
def test_long_odd_and_many_parameters_are_stored_and_the_whole_values_are_in_the_config(workdir: Path) -> None:
    values = {
        "long": "x" * 7000,
        "k" * 300: 1,
        "surrogate": "a\ud800b",
        "zero": "a\0b",
        "../path//out": 2,
        "sign=?": 3,
        **{f"many {index}": index for index in range(150)},
    }
    about = json.loads(json.dumps(ABOUT)) | {"parameters": values, "config": values}
    sync = MlflowSync(Record(workdir / "record", about))
    sync.record.finish("FINISHED", failure="no \ud800")
    sync.finish()
    assert not sync.failed
    (run,) = runs()
    found = run.data.params
    assert found["long"] == "x" * 6000
    assert [value for key, value in found.items() if key.startswith("kkk")] == ["1"]
    assert (found["surrogate"], found["zero"], found["path/out"], found["sign__"]) == ("a?b", "a\\0b", "2", "3")
    assert sum(key.startswith("many") for key in found) == 150
    config = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.json"))
    assert config == values


@pytest.mark.fault(39)
def test_values_that_are_not_finite_are_a_tag_and_never_a_large_number(record: Record) -> None:
    record.log(1, {"loss": float("inf"), "kl": float("nan"), "other": -float("inf"), "good": 1.0})
    record.finish("FINISHED")
    MlflowSync(record).finish(Results({"fid": float("inf"), "kid": float("nan"), "isc": 2.0}))
    (run,) = runs()
    assert {key for key in run.data.metrics if not key.startswith("cost/")} == {"train/good", "quality/isc"}
    assert run.data.tags["nonfinite"] == "step 1: kl, loss, other"
