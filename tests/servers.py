"""The team's server of examples/server.sh on a real PostgreSQL, and nginx with TLS in front of it, as fixtures."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.attacks import Client
from tests.ports import find_free_port

ROOT = Path(__file__).resolve().parents[1]
PASSWORD = "a long password of a test"  # noqa: S105
ADMIN = ("admin", PASSWORD)
ADA = ("ada", PASSWORD[::-1])  # a member of the team
EVE = ("eve", PASSWORD.upper())  # a login without rights on anything
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Server:
    """A running server: its address, its log, its process, and the certificate of its proxy."""

    address: str
    log: Path
    process: subprocess.Popen[bytes]
    certificate: Path | None = None

    def get(self, path: str, *, login: bool = True, **headers: str) -> requests.Response:
        """Ask for a path, as it is written."""
        return self.send("GET", path, None, login=login, **headers)

    def post(self, path: str, body: dict[str, object], *, login: bool = True, **headers: str) -> requests.Response:
        """Post JSON."""
        return self.send("POST", path, body, login=login, **headers)

    def send(
        self, method: str, path: str, body: Any = None, *, login: bool = True, **headers: str
    ) -> requests.Response:
        """Send a request of the administrator, or of nobody."""
        client = self.log_in(ADMIN, headers)
        if not login:
            client.session.auth = None
        return client.send(method, path, body)

    def log_in(self, login: tuple[str, str], headers: dict[str, str] | None = None) -> Client:
        """Return a client of a login."""
        return Client(self.address, login, headers, self.certificate)


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


def start(settings: Path, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start the example's script, with an environment that says nothing of tests or of CI."""
    environment = {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(settings.parent / "home"),
        **environment,
    }
    command = [str(ROOT / "examples" / "server.sh"), str(settings)]
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=settings.parent, env=environment, stdout=file, stderr=subprocess.STDOUT)


def wait_for(running: Server) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + 120
    while True:
        assert running.process.poll() is None, running.log.read_text()
        assert time.monotonic() < end, running.log.read_text()
        try:
            if running.get("/health", login=False).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of the example's script, with one worker, and two users: ada and eve."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "home").mkdir()
    port = find_free_port()
    settings = write_settings(
        folder,
        MLFLOW_BACKEND_STORE_URI=database,
        MLFLOW_ARTIFACTS_DESTINATION=folder / "artifacts",
        MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD,
        MLFLOW_FLASK_SERVER_SECRET_KEY=PASSWORD[::-1],
        MLFLOW_PORT=port,
        MLFLOW_SERVER_ALLOWED_HOSTS=f"mlflow.example.org,localhost,127.0.0.1:{port}",
    )
    with settings.open("a") as file:
        file.write("MLFLOW_WORKERS=1\n")
    log = folder / "log"
    running = Server(f"http://127.0.0.1:{port}", log, start(settings, log))
    try:
        wait_for(running)
        for name, password in (ADA, EVE):
            answer = running.post("/api/2.0/mlflow/users/create", {"username": name, "password": password})
            assert answer.ok, answer.text
        yield running
    finally:
        running.process.terminate()
        running.process.wait(timeout=30)


MAIN = """{user}daemon off;
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/mlflow.conf;
}}
"""


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The example's nginx in front of the server; only host, ports and certificate are the test's."""
    if not shutil.which("nginx"):
        pytest.skip("nginx is not installed (Debian: apt-get install nginx)")
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = folder / "mlflow.crt", folder / "mlflow.key"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*request, *names], check=True, capture_output=True)
    text = (ROOT / "examples" / "nginx.conf").read_text(encoding="utf-8")
    ports = {"443": find_free_port(), "80": find_free_port()}
    for old, new in {
        "listen 443": f"listen 127.0.0.1:{ports['443']}",
        "listen 80": f"listen 127.0.0.1:{ports['80']}",
        "http://127.0.0.1:5000": server.address,
        "mlflow.example.org": "localhost",
        "/etc/nginx/": f"{folder}/",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "mlflow.conf").write_text(text)
    user = "user root;\n" if os.geteuid() == 0 else ""  # else the workers could not enter the test's folder
    (folder / "nginx.conf").write_text(MAIN.format(user=user, folder=folder))
    log = folder / "log"
    with log.open("wb") as file:
        command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    running = Server(f"https://localhost:{ports['443']}", log, process, certificate)
    try:
        wait_for(running)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=30)
