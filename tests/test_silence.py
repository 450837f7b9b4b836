"""Nothing is told to anybody: trainings, evaluations, the interface and the team's server look up no host.

MLflow sends nothing under pytest or CI, so these processes know of neither: their environment is made here.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ports import find_free_port
from tests.servers import BIN, Server, start, wait_for, write_settings
from tests.test_dvc import copy_project

pytestmark = pytest.mark.slow
# Python reports these by itself to a hook that every process installs at its start, whoever imports what.
WITNESS = """
import json, os, sys
EVENTS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.connect", "socket.sendto"}
def note(event, arguments):
    if event in EVENTS:
        with open(os.environ["WITNESS"], "a") as file:
            print(json.dumps([event, *map(str, arguments)]), file=file)
sys.addaudithook(note)
"""
STAGES = "import sys; from pipeline.stages.__main__ import main; [main(words.split()) for words in sys.argv[1:]]"
LOCAL = ("127.0.0.1", "localhost", "::1", "/")  # the last: a socket that is a file


class Watch:
    """An environment of nothing but a path, an empty home and an empty folder for temporary files."""

    def __init__(self, folder: Path) -> None:
        self.home, self.temporary, self.log = folder / "home", folder / "temporary", folder / "events"
        for path in (self.home, self.temporary, folder / "site"):
            path.mkdir()
        (folder / "site" / "sitecustomize.py").write_text(WITNESS)
        self.environment = {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(folder / "site"),
            "WITNESS": str(self.log),
            "OMP_NUM_THREADS": "1",
        }

    def list_events(self) -> list[list[str]]:
        """Return what named a host that is not this machine."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        events = [json.loads(line) for line in lines]
        return [event for event in events if not any(name in " ".join(event[1:]) for name in LOCAL)]

    def check(self) -> None:
        """Assert that no host was looked up and no file was left outside the project."""
        assert self.list_events() == []
        assert list(self.home.rglob("*")) == []
        # PyTorch makes an empty folder there as it is imported.
        assert [path for path in self.temporary.rglob("*") if not path.is_dir()] == []


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("silence") / "project"
    copy_project(folder)
    return folder


def call(watch: Watch, folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, env=watch.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_witness_sees_what_a_process_looks_up_and_writes(watch: Watch) -> None:
    code = "import socket, pathlib, contextlib\nwith contextlib.suppress(OSError): socket.getaddrinfo('a.invalid', 443)"
    call(watch, watch.home, sys.executable, "-c", code + "\n(pathlib.Path.home() / 'x').touch()")
    (event,) = watch.list_events()
    assert event[:2] == ["socket.getaddrinfo", "a.invalid"]
    with pytest.raises(AssertionError):
        watch.check()


def test_mlflow_without_our_switches_looks_up_a_host_here(watch: Watch) -> None:
    # Else these tests would pass because MLflow has noticed that it is tested.
    code = "import mlflow, time; mlflow.set_tracking_uri('sqlite:///x.db'); mlflow.create_experiment('x')"
    code += "; time.sleep(5)"
    call(watch, watch.log.parent, sys.executable, "-c", code)
    assert {event[0] for event in watch.list_events()} == {"socket.getaddrinfo"}
    assert [path.name for path in watch.home.rglob("*.json")] == ["telemetry.json"]


def test_a_training_and_its_evaluation_look_up_no_host_and_write_only_to_the_project(
    watch: Watch, project: Path
) -> None:
    rounds = [
        ["check", "fetch text", "prepare text"],
        ["train transformer"],
        ["sample transformer", "evaluate transformer"],
    ]
    for stages in rounds:  # each in one process, whose libraries take seconds to import
        call(watch, project, sys.executable, "-c", STAGES, *stages)
        watch.check()
    assert (project / "reports" / "runs" / "transformer" / "metrics.json").exists()
    assert (project / "mlflow.db").exists()


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        wait_for(server)
        yield server
    finally:
        server.process.terminate()
        server.process.wait(timeout=60)


def look_around(server: Server) -> None:
    """Ask for the pages and answers that the interface asks for first, and wait for what starts later."""
    for path in ("/", "/ajax-api/3.0/mlflow/ui-telemetry", "/ajax-api/3.0/mlflow/server-info"):
        server.get(path)
    answer = server.post("/ajax-api/2.0/mlflow/experiments/search", {"max_results": 1})
    assert answer.ok, answer.text
    server.post("/ajax-api/2.0/mlflow/experiments/create", {"name": "new"})
    time.sleep(5)


def test_the_interface_looks_up_no_host(watch: Watch, project: Path) -> None:
    port, log = find_free_port(), watch.log.parent / "log"
    (project / ".venv").mkdir()
    (project / ".venv" / "installed").touch()  # this environment stands for the one that make would install
    try:
        command = ["make", "ui", f"PORT={port}"]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=project, env=watch.environment, stdout=file, stderr=subprocess.STDOUT
            )
        with running(Server(f"http://127.0.0.1:{port}", log, process)) as server:
            look_around(server)
            closed = ("/ajax-api/3.0/mlflow/ui-telemetry", "/ajax-api/3.0/mlflow/assistant/config")
            assert {server.get(path).status_code for path in closed} == {404}
            place = {"name": "y", "artifact_location": f"file://{watch.home}"}
            assert server.post("/api/2.0/mlflow/experiments/create", place).status_code == 403
    finally:
        shutil.rmtree(project / ".venv")
    watch.check()


def test_the_teams_server_looks_up_no_host(watch: Watch, tmp_path: Path) -> None:
    port, log = find_free_port(), tmp_path / "log"
    settings = write_settings(
        tmp_path,
        MLFLOW_BACKEND_STORE_URI=f"sqlite:///{tmp_path / 'mlflow.db'}",
        MLFLOW_ARTIFACTS_DESTINATION=tmp_path / "artifacts",
        MLFLOW_AUTH_ADMIN_PASSWORD="a long password of a test",  # noqa: S106
        MLFLOW_FLASK_SERVER_SECRET_KEY="secret",  # noqa: S106
        MLFLOW_PORT=port,
        MLFLOW_SERVER_ALLOWED_HOSTS=f"127.0.0.1:{port}",
    )
    process = start(settings, log, **watch.environment)
    with running(Server(f"http://127.0.0.1:{port}", log, process)) as server:
        look_around(server)
    watch.check()
