"""pipeline sync: a store that lost or never had the runs is completed, once."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.__main__ import main
from pipeline.history.mlflow_store import connect
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record
from tests.history.test_mlflow_sync import ABOUT


@pytest.fixture
def record(workdir: Path) -> Record:
    """A finished run with its evaluation, as a clone has it after `dvc pull`."""
    about = json.loads(json.dumps(ABOUT)) | {"name": "gan"}
    about["parameters"]["model.steps"] = 3
    record = Record(workdir / artifacts.RUNS / "gan" / "record", about)
    for step in (1, 2, 3):
        record.log(step, {"loss": 1 / step})
    record.finish("FINISHED")
    artifacts.write_json(artifacts.REPORTS / "runs" / "gan" / "metrics.json", {"fid_classifier": 5.0})
    return record


def test_a_store_without_the_run_gets_it_once(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    client, experiment = connect()
    for _ in range(2):
        assert main(["sync"]) == 0
        (run,) = client.search_runs([experiment])
        history = client.get_metric_history(run.info.run_id, "loss")
        assert sorted(metric.step for metric in history) == [1, 2, 3]
        assert len(client.get_metric_history(run.info.run_id, "fid_classifier")) == 1
    assert run.data.tags["record.id"] == record.about["id"]
    assert run.info.status == "FINISHED"
    assert run.info.run_id in capsys.readouterr().out


@pytest.mark.usefixtures("record")
def test_an_absent_server_is_status_1_and_a_later_sync_completes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["sync"]) == 1
    assert "gan: not sent" in capsys.readouterr().out
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert main(["sync", "gan"]) == 0
    client, experiment = connect()
    assert len(client.search_runs([experiment])) == 1


@pytest.mark.usefixtures("record")
def test_each_value_comes_with_the_hash_of_its_protocol_and_a_newer_one_replaces_it() -> None:
    folder = artifacts.REPORTS / "runs" / "gan"
    for value in (5.0, 3.0):
        artifacts.write_json(folder / "metrics.json", {"fid_classifier": value})
        values = {"fid_classifier": {"fields": [], "hash": f"hash of {value}"}}
        artifacts.write_json(folder / "protocol.json", {"protocol": {}, "run": {}, "values": values})
        assert main(["sync"]) == 0
        client, experiment = connect()
        (run,) = client.search_runs([experiment])
        assert run.data.metrics["fid_classifier"] == value
        assert run.data.tags["protocol.fid_classifier"] == f"hash of {value}"


def test_lines_that_an_outage_swallowed_are_sent_and_no_others(
    record: Record, workdir: Path, empty_store: Path
) -> None:
    # The store has step 1 alone: what it got before it went away.
    partial = Record(workdir / "partial", record.about)
    partial.log(1, {"loss": 1.0})
    MlflowSync(partial).finish()
    shutil.rmtree(workdir / "partial")
    assert main(["sync"]) == 0
    client, experiment = connect()
    (run,) = client.search_runs([experiment])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == [1, 2, 3]
    assert empty_store.exists()


def test_a_run_without_a_record_is_named(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert workdir.exists()
    assert main(["sync", "vae"]) == 1
    assert "no record of vae" in capsys.readouterr().err
