"""pipeline sync: a store that lost or never had the runs is completed, once."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import mlflow.pyfunc
import pytest
from mlflow.entities import LoggedModelStatus, ViewType
from PIL import Image

from pipeline import artifacts
from pipeline.__main__ import main
from pipeline.history import mlflow_files
from pipeline.history.foreign import require_harmless
from pipeline.history.mlflow_store import connect
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record
from pipeline.history.results import Results
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
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted(metric.step for metric in history) == [1, 2, 3]
        assert len(client.get_metric_history(run.info.run_id, "quality/fid_classifier")) == 1
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


@pytest.mark.fault(68)
@pytest.mark.usefixtures("record")
def test_a_login_in_the_servers_address_is_in_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:s3cret@127.0.0.1:9")
    assert main(["sync"]) == 1
    assert "MLflow is not reachable" in caplog.text
    assert "s3cret" not in caplog.text + "".join(capsys.readouterr())


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
        assert run.data.metrics["quality/fid_classifier"] == value
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
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(metric.step for metric in history) == [1, 2, 3]
    assert empty_store.exists()


def test_a_run_without_a_record_is_named(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert workdir.exists()
    assert main(["sync", "vae"]) == 1
    assert "no record of vae" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["moved", "a%20b?c#d"])
def test_addresses_follow_a_project_that_was_copied(
    record: Record,
    workdir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    assert main(["sync", record.about["name"]]) == 0
    client, experiment = connect()
    disk = tmp_path_factory.mktemp("disk") / "mlartifacts"
    disk.mkdir()
    chosen = client.create_experiment("of a chosen place", artifact_location=disk.as_uri())
    root = workdir / name
    root.mkdir()
    for each in ("mlflow.db", "mlartifacts", "data", "reports"):
        (shutil.copytree if (workdir / each).is_dir() else shutil.copy)(workdir / each, root / each)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # which MLflow has set to the store of this process
    assert main(["sync"]) == 0
    assert f"is from {workdir}: its 2 addresses of artifacts lead to {root} now" in caplog.text
    client, experiment = connect()
    assert client.get_experiment(experiment).artifact_location == (root / "mlartifacts").as_uri()
    assert client.get_experiment(chosen).artifact_location == disk.as_uri()
    (run,) = client.search_runs([experiment])
    assert run.info.artifact_uri.startswith((root / "mlartifacts").as_uri() + "/")
    further = client.create_run(experiment)  # MLflow keeps the old address of `run` as long as this process lives
    client.log_text(further.info.run_id, "here", "where.txt")
    assert [path.read_text() for path in (root / "mlartifacts").rglob("where.txt")] == ["here"]
    assert not list((workdir / "mlartifacts").rglob("where.txt"))  # the original has its own


@pytest.mark.usefixtures("record")
def test_files_that_are_gone_from_the_disk_are_sent_again(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync"]) == 0
    (config,) = (workdir / "mlartifacts").rglob("config.json")
    (metrics,) = (workdir / "mlartifacts").rglob("evaluation/metrics.json")
    shutil.rmtree(workdir / "mlartifacts")
    assert main(["sync"]) == 0
    assert config.exists()
    assert metrics.exists()
    said = capsys.readouterr().out
    assert "; its model is not in data/runs/gan/model: `dvc pull` brings it\n" in said
    assert "vae: no record here; `dvc pull train@vae` brings it, or `dvc repro train@vae` makes it\n" in said
    assert said.endswith("1 of 1 runs are in MLflow now; `pipeline ui` shows them\n")


@pytest.mark.usefixtures("workdir")
def test_without_records_it_says_where_they_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync"]) == 0
    said = capsys.readouterr().out
    assert "nothing to send: data/runs and .state have no record of a run" in said
    assert "`dvc pull` brings them (docs/share.md)" in said


def test_a_run_that_was_deleted_in_mlflow_is_restored_and_not_made_again(record: Record) -> None:
    assert main(["sync"]) == 0
    client, experiment = connect()
    (run,) = client.search_runs([experiment])
    client.delete_run(run.info.run_id)
    assert main(["sync"]) == 0
    (restored,) = client.search_runs([experiment], run_view_type=ViewType.ALL)
    assert (restored.info.run_id, restored.info.lifecycle_stage) == (run.info.run_id, "active")
    assert restored.data.metrics == run.data.metrics
    assert restored.data.tags["record.id"] == record.about["id"]


@pytest.mark.parametrize("files", [["MLmodel", "serving.py"], []])
def test_a_model_whose_files_are_gone_is_replaced(monkeypatch: pytest.MonkeyPatch, files: list[str]) -> None:
    deleted: list[str] = []
    logged: list[str] = []
    client: Any = SimpleNamespace(
        search_logged_models=lambda *_: [SimpleNamespace(model_id="m-1", status=LoggedModelStatus.READY)],
        list_logged_model_artifacts=lambda _: [SimpleNamespace(path=path) for path in files],
        delete_logged_model=deleted.append,
    )
    monkeypatch.setattr(mlflow, "start_run", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(mlflow.pyfunc, "log_model", lambda name, **_: logged.append(name))
    about = {"config": {}, "environment": dict.fromkeys(("torch", "pytorch-lightning", "numpy", "mlflow"), "1")}
    mlflow_files.log_model(client, "0", "run", Path("data/runs/gan/model"), about, step=3)
    assert (deleted, logged) == (([], []) if files else (["m-1"], ["model"]))


@pytest.mark.usefixtures("workdir")
@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_a_finished_run_that_is_gone_for_good_comes_back_with_its_model(
    monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    record = Record(artifacts.RUNS / "gan" / "record", json.loads(json.dumps(ABOUT)))
    record.finish(status)
    model = artifacts.RUNS / "gan" / "model"
    model.mkdir()
    logged: list[Path] = []
    monkeypatch.setattr(mlflow_files, "log_model", lambda *arguments: logged.append(arguments[3]))
    monkeypatch.setattr(mlflow_files, "register_model", lambda *_: None)
    MlflowSync(record).finish(Results({"fid_classifier": 5.0}))  # as the stage evaluate does
    assert logged == ([model] if status == "FINISHED" else [])


def change(**values: Any) -> Callable[[Path], None]:
    """Change run.json."""
    return lambda folder: artifacts.write_json(folder / "run.json", artifacts.read_json(folder / "run.json") | values)


def link(folder: Path) -> None:
    """Let an exhibit be a file outside of the project."""
    path = folder / "exhibits" / "samples" / "0000001.txt"
    path.parent.mkdir(parents=True)
    path.symlink_to(folder.parents[3] / "secret")


def swell(folder: Path) -> None:
    """Make a picture of 70 megapixels in 270 kB."""
    path = folder / "exhibits" / "samples" / "0000001.png"
    path.parent.mkdir(parents=True)
    Image.new("1", (70_000, 1000)).save(path)


def leave_unsealed(folder: Path) -> None:
    """Add a model with a file that its seal does not name."""
    model = folder.with_name("model")
    model.mkdir()
    artifacts.seal(model)
    (model / "evil.pkl").touch()


HARM = {
    "text": (lambda folder: (folder / "run.json").write_text("{"), "not a complete JSON file"),
    "list": (lambda folder: (folder / "run.json").write_text("[]"), "run.json: content: Input should be a valid dict"),
    "path": (change(name="../../outside"), "run.json: name: String should match pattern"),
    "escape": (change(name="\x1b[2J"), "run.json: name: String should match pattern"),
    "time": (change(ended="soon"), "run.json: ended: Input should be a valid number"),
    "steps": (change(parameters={}), "parameters.model.steps: expected a whole number"),
    "link": (link, "a link to '.*secret', expected a file"),
    "pipe": (lambda folder: os.mkfifo(folder / "system.jsonl"), "system.jsonl: neither a file nor a folder"),
    "picture": (swell, "expected at most 67108864 pixels, got 70000 x 1000"),
    "html": (lambda folder: (folder / "x.png").write_text("<html>"), "x.png: no PNG picture within bounds"),
    "large": (lambda folder: os.truncate(folder / "metrics.jsonl", 2**31), "expected at most 1073741824 bytes"),
    "model": (leave_unsealed, "evil.pkl: expected SHA-256 none"),
}


@pytest.mark.fault(67)
@pytest.mark.usefixtures("record")
def test_records_that_are_broken_or_do_harm_are_named_and_the_others_are_sent(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "secret").write_text("secret")
    for name, (harm, _) in HARM.items():
        folder = artifacts.RUNS / f"a-{name}" / "record"  # before the good one
        shutil.copytree(artifacts.RUNS / "gan" / "record", folder)
        harm(folder)
    assert main(["sync"]) == 1
    lines = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if "no record here" not in line]
    assert len(lines) == len(HARM) + 2
    for line, name in zip(lines, sorted(HARM), strict=False):
        assert line.startswith(f"not sent: data/runs/a-{name}/")
        assert re.search(HARM[name][1], line), line
    assert [line for line in lines if line.startswith("gan: MLflow run ")]
    assert lines[-1].startswith(f"1 of {len(HARM) + 1} runs are in MLflow now")
    client, experiment = connect()
    assert len(client.search_runs([experiment])) == 1


@pytest.mark.fault(67)
def test_a_record_of_another_name_has_the_numbers_of_its_own_folder(record: Record) -> None:
    change(name="vae")(record.folder)
    artifacts.write_json(artifacts.REPORTS / "runs" / "vae" / "metrics.json", {"fid_classifier": 1.0})
    assert main(["sync"]) == 0
    client, experiment = connect()
    (run,) = client.search_runs([experiment])
    assert run.data.metrics["quality/fid_classifier"] == 5.0


def test_links_into_the_cache_of_dvc_are_its_own(record: Record, workdir: Path) -> None:
    # `dvc config cache.type symlink` makes every output such a link.
    path = record.folder / "metrics.jsonl"
    cached = workdir / ".dvc" / "cache" / "files" / "md5" / "ab" / ("c" * 30)
    cached.parent.mkdir(parents=True)
    path.rename(cached)
    path.symlink_to(cached)
    assert main(["sync"]) == 0


def test_the_state_that_a_training_goes_on_from_may_be_large(record: Record) -> None:
    state = record.folder / "state.ckpt"
    state.touch()
    os.truncate(state, 2**31)
    require_harmless(record.folder)
