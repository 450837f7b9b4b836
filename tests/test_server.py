"""The team's server of examples/server.sh, on a real PostgreSQL: who may do what."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from mlflow.server import get_app_client

from pipeline.history.mlflow_store import connect
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record
from tests.conftest import ROOT
from tests.history.test_mlflow_sync import ABOUT

pytestmark = pytest.mark.slow
PASSWORD = "a long password of a test"  # noqa: S105
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Server:
    """A running server: its address, its log and its command line."""

    address: str
    log: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str, *, login: bool = True, **headers: str) -> requests.Response:
        """Ask for a path, as it stands."""
        with requests.Session() as session:
            session.trust_env = False
            request = requests.Request(
                "GET", self.address, headers=headers, auth=("admin", PASSWORD) if login else None
            )
            prepared = session.prepare_request(request)
            prepared.url = self.address + path  # requests would resolve the dots
            return session.send(prepared, timeout=30)

    def post(self, path: str, body: dict[str, object], *, login: bool = True, **headers: str) -> requests.Response:
        """Post JSON."""
        auth = ("admin", PASSWORD) if login else None
        return requests.post(self.address + path, json=body, auth=auth, headers=headers, timeout=30)


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty PostgreSQL database with an owner of its own."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    unprivileged: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        unprivileged = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    secret = folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)

    def call(name: str, *arguments: str) -> None:
        environment = {"PGPASSWORD": PASSWORD, "LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
        command = [*unprivileged, str(found[-1] / name), *arguments]
        subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)

    port = find_free_port()
    data, access = str(folder / "data"), ("-h", "127.0.0.1", "-p", str(port), "-U", "owner")
    call("initdb", "-D", data, "-U", "owner", "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync")
    call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", f"-h 127.0.0.1 -p {port} -k {folder} -F", "start")
    try:
        call("psql", *access, "-c", f"CREATE ROLE mlflow LOGIN PASSWORD '{PASSWORD}'", "postgres")
        call("createdb", *access, "--owner", "mlflow", "mlflow")
        yield f"postgresql+psycopg2://mlflow:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/mlflow"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def write_settings(folder: Path, **changes: object) -> Path:
    """Fill in the example's settings."""
    text = (ROOT / "examples" / "server.env.example").read_text(encoding="utf-8")
    for name, value in changes.items():
        lines = [line for line in text.splitlines() if line.startswith(f"{name}=")]
        assert len(lines) == 1, name
        text = text.replace(lines[0], f"{name}='{value}'")
    path = folder / "server.env"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def start(settings: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(settings.parent)}
    command = [str(ROOT / "examples" / "server.sh"), str(settings)]
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=settings.parent, env=environment, stdout=file, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of the example's script, with one worker."""
    folder = tmp_path_factory.mktemp("server")
    port = find_free_port()
    settings = write_settings(
        folder,
        MLFLOW_BACKEND_STORE_URI=database,
        MLFLOW_ARTIFACTS_DESTINATION=folder / "artifacts",
        MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD,
        MLFLOW_FLASK_SERVER_SECRET_KEY=PASSWORD[::-1],
        MLFLOW_PORT=port,
        MLFLOW_SERVER_ALLOWED_HOSTS=f"mlflow.example.org,127.0.0.1:{port}",
    )
    with settings.open("a") as file:
        file.write("MLFLOW_WORKERS=1\n")
    log = folder / "log"
    running = Server(f"http://127.0.0.1:{port}", log, start(settings, log))
    try:
        end = time.monotonic() + 120
        while True:
            assert running.process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            try:
                if running.get("/health", login=False).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.5)
        yield running
    finally:
        running.process.terminate()
        running.process.wait(timeout=30)


SEARCH = "/api/2.0/mlflow/experiments/search"


@pytest.mark.fault(44)
def test_without_a_login_nothing_is_read_or_written(server: Server) -> None:
    body = {"max_results": 1}
    assert server.post(SEARCH, body, login=False).status_code == 401
    for path in ("/", "/api/2.0/mlflow/users/get?username=admin", "/graphql", "/api/2.0/mlflow-artifacts/artifacts"):
        assert server.get(path, login=False).status_code == 401, path
    assert (
        requests.post(server.address + SEARCH, json=body, auth=("admin", "password1234"), timeout=30).status_code == 401
    )
    assert server.post(SEARCH, body).status_code == 200


@pytest.mark.fault(44)
def test_foreign_hosts_and_origins_are_refused_even_with_a_login(server: Server) -> None:
    body = {"max_results": 1}
    assert server.post(SEARCH, body, Host="evil.example.net").status_code == 403
    assert server.post(SEARCH, body, Origin="https://evil.example.net").status_code == 403
    assert server.post(SEARCH, body, Host="mlflow.example.org").status_code == 200
    assert server.post(SEARCH, body, Origin="https://mlflow.example.org").status_code == 200


@pytest.mark.fault(44)
@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "%252e%252e/etc/passwd",
        "/etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_artifacts(server: Server, path: str) -> None:
    for prefix in ("/api/2.0/mlflow-artifacts/artifacts/", "/get-artifact?run_uuid=0&path=", "/static-files/"):
        answer = server.get(prefix + path)
        assert "root:" not in answer.text
        assert not answer.ok or "<!doctype html>" in answer.text.lower(), (prefix, answer.status_code)
    answer = server.get(f"/api/2.0/mlflow-artifacts/artifacts?path={path}")
    assert "passwd" not in answer.text or not answer.ok


def test_jobs_are_off(server: Server) -> None:
    body: dict[str, object] = {"job_name": "invoke_scorer", "params": {}}
    answer = server.post("/ajax-api/3.0/jobs/", body)
    assert not answer.ok
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION" in answer.text


@pytest.mark.fault(44)
def test_a_training_with_a_login_sends_its_run_and_without_one_keeps_it(
    server: Server, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    record = Record(workdir / "record", ABOUT)
    record.log(1, {"loss": 0.5})
    record.exhibit("samples", 1, ".txt", b"to be")
    record.finish("FINISHED")
    sync = MlflowSync(record)
    sync.finish()
    assert sync.failed
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    sync = MlflowSync(record)
    sync.finish()
    assert not sync.failed
    client, experiment = connect()
    (run,) = client.search_runs([experiment])
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 0.5)
    assert [item.path for item in client.list_artifacts(run.info.run_id, "exhibits/samples")] == [
        "exhibits/samples/0000001.txt"
    ]


@pytest.mark.fault(44)
def test_a_second_user_reads_the_runs_of_the_first_and_changes_none(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    get_app_client("basic-auth", server.address).create_user("ada", PASSWORD[::-1])
    created = server.post("/api/2.0/mlflow/experiments/create", {"name": "of the first"}).json()
    path, login = f"{server.address}/api/2.0/mlflow/experiments", ("ada", PASSWORD[::-1])
    found = requests.get(f"{path}/get", params=created, auth=login, timeout=30)
    assert found.json()["experiment"]["name"] == "of the first"
    assert requests.post(f"{path}/delete", json=created, auth=login, timeout=30).status_code == 403
    assert requests.post(f"{path}/create", json={"name": "hers"}, auth=login, timeout=30).status_code == 200


def test_no_password_stands_in_the_process_list_or_the_log(server: Server) -> None:
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    for text in (listed, server.log.read_text()):
        assert PASSWORD not in text
        assert PASSWORD.replace(" ", "%20") not in text


@pytest.mark.parametrize(
    ("changes", "mode", "message"),
    [
        ({}, 0o600, "MLFLOW_BACKEND_STORE_URI: expected a value of your own"),
        ({}, 0o644, "others can read it"),
        (
            {"MLFLOW_BACKEND_STORE_URI": "x", "MLFLOW_AUTH_ADMIN_PASSWORD": ""},
            0o600,
            "MLFLOW_AUTH_ADMIN_PASSWORD: expected",
        ),
    ],
)
def test_settings_that_are_not_filled_in_or_open_to_others_start_nothing(
    tmp_path: Path, changes: dict[str, str], mode: int, message: str
) -> None:
    settings = write_settings(tmp_path, **changes)
    settings.chmod(mode)
    process = start(settings, tmp_path / "log")
    assert process.wait(timeout=30) == 1
    assert message in (tmp_path / "log").read_text()
