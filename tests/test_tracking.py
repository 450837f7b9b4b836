"""MLflow from the record: one run whatever happens, everything in it, an outage stops nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient

from pipeline.record import Record, describe_environment, describe_lineage
from pipeline.tracking import Mirror, connect

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


def test_a_run_shows_parameters_metrics_by_step_images_texts_data_and_status(record: Record, workdir: Path) -> None:
    mirror = Mirror(record).start()
    for step in (1, 2, 3):
        record.log(step, {"loss": 1 / step})
    record.image("samples", 2, torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8))
    record.text("samples", 3, "to be")
    record.finish("FINISHED", kept_parameters=5)
    mirror.close()
    (run,) = runs()
    client = MlflowClient()
    assert run.info.run_name == "gan"
    assert run.info.status == "FINISHED"
    assert run.data.params["model.note"] == "x" * 5000  # Lightning's logger would cut it at 250
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert run.data.metrics["cost.kept_parameters"] == 5
    assert run.data.metrics["cost.seconds"] == record.about["totals"]["seconds"] > 0
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
    Mirror(record).send()
    record.log(2, {"loss": 2.0})
    record.finish("FINISHED")
    Mirror(Record(record.folder)).close({"fid_classifier": 8.0}, step=2)
    (run,) = runs()
    history = MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 3.0), (2, 2.0)]
    assert run.data.metrics["fid_classifier"] == 8
    assert run.info.status == "FINISHED"


def test_a_second_line_of_a_step_is_sent_too(record: Record) -> None:
    mirror = Mirror(record)
    record.log(1, {"loss": 3.0})
    mirror.send()
    record.log(1, {"validation_nats": 2.0})
    mirror.send()
    (run,) = runs()
    assert run.data.metrics == {"loss": 3.0, "validation_nats": 2.0}


def test_a_lost_store_is_filled_again_from_the_record(
    record: Record, workdir: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.log(1, {"loss": 3.0})
    record.finish("FINISHED")
    Mirror(record).close()
    shutil.copy(empty_store, workdir / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir / 'mlflow.db'}")
    Mirror(Record(record.folder)).close()
    (run,) = runs()
    assert run.data.metrics["loss"] == 3
    assert run.data.tags["record.id"] == record.about["id"]


@pytest.mark.fault(7)
def test_an_absent_server_is_one_warning_and_the_record_keeps_all(
    record: Record, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mirror = Mirror(record).start()
    record.log(1, {"loss": 3.0})
    record.finish("FAILED")
    mirror.close()
    assert [line["values"] for line in record.read()] == [{"loss": 3.0}]
    assert sum("MLflow is not reachable" in entry.message for entry in caplog.records) == 1


def test_a_run_that_failed_and_then_finished_counts_both_attempts_and_keeps_no_failure(record: Record) -> None:
    record.finish("FAILED", failure="ValueError: no")
    Mirror(record).close()
    (run,) = runs()
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "ValueError: no")
    first = record.about["totals"]
    again = Record(record.folder)
    again.finish("FINISHED")
    Mirror(again).close()
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


def test_lineage_names_commit_and_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train@gan")
    tags = describe_lineage()
    assert tags["dvc.stage"] == "train@gan"
    assert len(tags["mlflow.source.git.commit"]) == 40
