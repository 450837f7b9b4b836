"""A real MLflow server behind a line that fails, around real trainings: nothing is lost, nothing comes twice."""

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow.tracking import MlflowClient

from pipeline import artifacts
from pipeline.__main__ import main
from pipeline.history.record import Record
from pipeline.history.recorder import Recorder
from pipeline.stages import fetch, prepare, train
from tests.conftest import ROOT, TINY
from tests.test_dvc import set_params

pytestmark = pytest.mark.slow
ANSWERS = {"500": b"500 Internal Server Error", "429": b"429 Too Many Requests", "200": b"200 OK"}


class Line:
    """Carries connections to a port; `state` says what happens to them.

    up, refuse (reset at once), hang (taken and never answered), or an HTTP status that answers everything.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.open: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.state = "up"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def turn(self, state: str) -> None:
        """Change the state; connections that are open are cut."""
        self.state = state
        while self.open:
            self.open.pop().close()

    def _accept(self) -> None:
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return  # closed at the end of the tests
            if self.state == "refuse":
                client.close()
                continue
            self.open.append(client)
            if self.state != "hang":
                threading.Thread(target=self._serve, args=(client, self.state), daemon=True).start()

    def _serve(self, client: socket.socket, state: str) -> None:
        try:
            if state == "up":
                self._carry(client)
            else:
                client.recv(65536)
                client.sendall(
                    b"HTTP/1.1 " + ANSWERS[state] + b"\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnone"
                )
                client.close()
        except (OSError, ValueError):
            pass  # cut by turn()

    def _carry(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.port))
        self.open.append(server)
        ways = {client: server, server: client}
        while True:
            for source in select.select([*ways], [], [])[0]:
                content = source.recv(65536)
                if not content:
                    client.close()
                    server.close()
                    return
                ways[source].sendall(content)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """An MLflow server with one worker, and the line to it."""
    folder = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = f"sqlite:///{folder / 'mlflow.db'}"
    command = ["mlflow", "server", "--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while True:
        try:
            requests.get(f"http://127.0.0.1:{port}/health", timeout=1).raise_for_status()
            break
        except requests.RequestException:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.2)
    carrier = Line(port)
    yield carrier
    carrier.listener.close()
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with prepared digits and trainings of a second."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("params.yaml", "requirements.lock"):
            shutil.copy(ROOT / name, folder)
        set_params(folder, TINY | {"models.vae.steps": 12})
        fetch.main("images")
        prepare.main("images")
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, whose trainings are recorded on the server, often and with little patience."""
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    line.turn("up")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", line.address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr("pipeline.history.mlflow_sync.SECONDS_BETWEEN_SENDS", 0.05)
    return folder


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Callable[[], None]]], None]:
    """Do something when a training has recorded a step, and give the tracker a moment to notice."""

    def plan(actions: dict[int, Callable[[], None]]) -> None:
        record_step = Recorder.on_train_batch_end

        def act(self: Recorder, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            record_step(self, trainer, module, outputs, batch, index)
            if index + 1 in actions:
                actions[index + 1]()
                time.sleep(1.2)

        monkeypatch.setattr(Recorder, "on_train_batch_end", act)

    return plan


def fetch_run() -> tuple[MlflowClient, Any]:
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def require_complete() -> None:
    """Compare the server's only run with the record: each value at its step once, exhibits, model, status."""
    record = Record(artifacts.RUNS / "vae" / "record")
    expected: dict[str, list[tuple[int, float]]] = {}
    for name, prefix in (("metrics", "train/"), ("system", "system/")):
        for row in record.read(name):
            for key, value in row["values"].items():
                expected.setdefault(prefix + key, []).append((row["step"], value))
    client, run = fetch_run()
    found = {
        key: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
        if not key.startswith("cost/")
    }
    assert found == {key: sorted(values) for key, values in expected.items()}
    assert len(found["train/loss"]) == 12
    assert {"train/learning_rate_0_0", "system/cpu_utilization_percentage"} <= found.keys()
    assert run.info.status == "FINISHED"
    assert run.data.params["model.steps"] == "12"
    names = [item.path for item in client.list_artifacts(run.info.run_id, "images") if item.path.endswith(".png")]
    drawn = [int(path.stem) for path in (record.folder / "exhibits" / "samples").glob("*.png")]
    assert sorted(int(name.split("+")[2]) for name in names) == sorted(drawn)
    assert 12 in drawn
    config = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.json"))
    assert config == record.about["config"]
    models = client.search_logged_models([run.info.experiment_id])
    assert [model.source_run_id for model in models if model.status == "READY"] == [run.info.run_id]


@pytest.mark.fault(49)
@pytest.mark.usefixtures("project")
def test_a_live_server_gets_the_whole_run_by_itself() -> None:
    train.main("vae")
    require_complete()


@pytest.mark.fault(7, 27)
@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("before", "states"),
    [
        ("refuse", {}),  # absent
        ("429", {8: "up"}),  # absent, and there in the end
        ("up", {4: "500"}),  # lost
        ("up", {4: "hang", 8: "up"}),  # lost and back
        ("up", {4: "200"}),  # never back: a proxy answers everything
    ],
)
def test_an_outage_stops_no_training_and_a_later_sync_completes_the_run_without_duplicates(
    before: str,
    states: dict[int, str],
    line: Line,
    at_step: Callable[[dict[int, Callable[[], None]]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    line.turn(before)
    at_step({step: lambda state=state: line.turn(state) for step, state in states.items()})  # type: ignore[misc]
    train.main("vae")
    assert "MLflow is not reachable" in caplog.text
    assert [row["step"] for row in Record(artifacts.RUNS / "vae" / "record").read() if "loss" in row["values"]] == [
        *range(1, 13)
    ]
    if line.state == "up":
        require_complete()  # without a sync
    else:
        line.turn("up")
    for _ in range(2):
        assert main(["sync"]) == 0
        require_complete()


@pytest.mark.fault(0, 7)
def test_a_hanging_server_does_not_delay_the_end_of_a_preempted_training(project: Path, line: Line) -> None:
    set_params(project, {"models.vae.steps": 100_000})
    line.turn("hang")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PIPELINE_CHECKPOINT_SECONDS": "0.5"}
    environment |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5"}
    command = [sys.executable, "-m", "pipeline.stages", "train", "vae"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 120
    while not list(project.rglob("*.ckpt.sha256")):
        assert time.monotonic() < end
        time.sleep(0.1)
    before = time.monotonic()
    process.terminate()
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 75, output[-2000:]
    assert time.monotonic() - before < 10  # saving, 3 seconds of patience, and the end of Python
    assert "MLflow does not answer" in output
    (path,) = project.glob(".state/train-vae/*/record/run.json")
    assert json.loads(path.read_text())["status"] == "KILLED"


PROCESS = """
import sys, time
from pathlib import Path
from pipeline.history.record import Record
from pipeline.history.mlflow_sync import MlflowSync
about = dict(name=sys.argv[1], parameters={}, config={}, tags={}, datasets=[], environment={})
record = Record(Path(sys.argv[1]), about)
Path(sys.argv[1], "ready").touch()
while not Path("go").exists():
    time.sleep(0.01)
sync = MlflowSync(record).start()
record.log(1, {"loss": 1.0})
record.finish("FINISHED")
sync.finish()
sys.exit(sync.failed)
"""


@pytest.mark.fault(17)
def test_four_first_starts_at_once_on_a_fresh_database_all_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, f"run{index}"], env=environment, stderr=subprocess.PIPE, text=True
        )
        for index in range(4)
    ]
    while len(list(tmp_path.glob("run*/ready"))) < 4:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    (tmp_path / "go").touch()
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = (found for found in client.search_experiments() if found.name == "generative-experiments")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == [f"run{index}" for index in range(4)]
    assert all(run.data.metrics["train/loss"] == 1 and run.info.status == "FINISHED" for run in runs)
