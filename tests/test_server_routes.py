"""The team server's table of routes lists every route of the installed MLflow, and no spelling passes a closed one."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

import pytest
from mlflow.protos import databricks_pb2
from mlflow.protos.mlflow_artifacts_pb2 import MlflowArtifactsService
from mlflow.protos.model_registry_pb2 import ModelRegistryService
from mlflow.protos.service_pb2 import MlflowService
from mlflow.server import handlers

from pipeline.server.app import Gate, read_routes
from tests.conftest import ROOT

TABLE = read_routes()
CLOSED = [route for route, who in TABLE.items() if who == "nobody"]
SILENT = [route for route, who in TABLE.items() if who == "nothing"]
OPEN = [route for route, who in TABLE.items() if who not in {"nobody", "nothing"}]


def fill_in(route: str) -> str:
    """Give a route's variables values."""
    return re.sub(r"<path:\w+>", "1/a.txt", re.sub(r"<\w+>", "m-1", route))


class Behind:
    """The app behind the gate: it answers 200 and remembers what came."""

    def __init__(self) -> None:
        self.came: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.came.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


BEHIND = Behind()
GATE = Gate(BEHIND, TABLE)


def ask(method: str, path: str, kind: str = "http", **scope: Any) -> int:
    """Return the gate's status for a path as a client writes it; uvicorn decodes it once."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = path.encode()
    values = {"type": kind, "method": method, "path": unquote(path), "raw_path": raw, "headers": [], "root_path": ""}
    asyncio.run(GATE(values | scope, lambda: None, send))  # type: ignore[arg-type, return-value]
    return int(sent[0].get("status", 403))


def test_the_table_lists_every_route_of_the_installed_server_and_no_other() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "tests.list_routes"]
    listed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    installed = {tuple(line.split(" ", 1)) for line in listed.splitlines()}
    assert len(installed) > 500
    assert installed - TABLE.keys() == set(), "MLflow has new routes: read what they do, then enter them in routes.txt"
    assert TABLE.keys() - installed == set(), "MLflow no longer has these routes"


def test_every_open_route_passes_and_every_closed_one_ends_with_404() -> None:
    assert {route for route in OPEN if ask(route[0], fill_in(route[1])) != 200} == set()
    assert {route for route in CLOSED if ask(route[0], fill_in(route[1])) != 404} == set()


def test_the_gateways_list_is_empty_whatever_is_behind_the_gate_and_the_gateway_itself_is_closed() -> None:
    # MLflow shows an error over its table of runs where the list gets a 404.
    came = len(BEHIND.came)
    [(method, path)] = SILENT
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [], "root_path": ""}
    asyncio.run(GATE(scope, lambda: None, send))  # type: ignore[arg-type, return-value]
    assert (sent[0]["status"], json.loads(sent[1]["body"])) == (200, {"endpoints": []})
    assert ask("POST", path) == 404
    assert len(BEHIND.came) == came


@pytest.mark.parametrize(
    "part",
    [
        "assistant",
        "gateway",
        "jobs",
        "scorer",
        "prompt-optimization",
        "webhooks",
        "mcp-servers",
        "/v1/traces",
        "signup",
    ],
)
def test_no_route_of_a_feature_that_runs_or_fetches_something_is_open(part: str) -> None:
    assert any(part in path for _, path in CLOSED)
    assert [path for _, path in OPEN if part in path] == []


def test_users_and_roles_are_the_administrators_but_for_the_users_own() -> None:
    own = {"current", "current/permissions", "update-password"}
    for (_, path), who in TABLE.items():
        if match := re.search(r"/mlflow/(users|roles)/(.+)$", path):
            allowed = {"login"} if match[1] == "users" and match[2] in own else {"administrator", "nobody"}
            assert who in allowed, path


SPELLINGS = [
    lambda path: path + "/",
    lambda path: "/" + path,
    lambda path: path.replace("/mlflow", "//mlflow"),
    lambda path: path.replace("/mlflow", "/./mlflow"),
    lambda path: path.replace("/mlflow", "/x/../mlflow"),
    lambda path: "/static-files/.." + path,
    lambda path: "/static-files/..%2f" + path[1:],
    lambda path: "/health/.." + path,
    lambda path: quote(path, safe="/").replace("a", "%61"),
    lambda path: path.replace("a", "%2561"),
    lambda path: path.replace("/", "%2f"),
    lambda path: path.replace("/", "\\"),
    lambda path: path.upper(),
    lambda path: path + "%00",
    lambda path: path + "%3f",
    lambda path: path + "%20",
    lambda path: path + ";x=1",
    lambda path: path + "/.",
    lambda path: "/mlflow" + path,
    lambda path: "http://localhost" + path,
]


@pytest.mark.parametrize("spelling", range(len(SPELLINGS)))
def test_no_spelling_of_a_closed_path_passes(spelling: int) -> None:
    # What passes as a file's name below an open route reaches that route, and no closed one.
    files = ("/static-files/", "/api/2.0/mlflow-artifacts/artifacts/", "/ajax-api/2.0/mlflow-artifacts/artifacts/")
    for method, route in CLOSED:
        path = SPELLINGS[spelling](fill_in(route))
        if ask(method, path) == 200:
            came = BEHIND.came[-1]["path"]
            assert came.startswith(files), (method, path)
            assert ".." not in came, (method, path)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "PROPFIND", ""])
def test_other_methods_and_websockets_do_not_pass(method: str) -> None:
    for _, route in [*OPEN, *CLOSED]:
        assert ask(method, fill_in(route)) == 404
        assert ask("GET", fill_in(route), kind="websocket") == 403


def test_a_prefix_of_the_server_opens_nothing() -> None:
    assert ask("GET", "/x/health", root_path="/x") == 404
    assert ask("GET", "/health", root_path="/x") == 404
    assert ask("GET", "/health") == 200


@pytest.mark.parametrize("line", ["somebody GET /x", "login GET /", "login /x"])
def test_a_broken_table_is_refused(line: str, tmp_path: Any) -> None:
    path = tmp_path / "routes.txt"
    path.write_text(f"login GET /\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(line) if line.count(" ") == 2 else "expected 3"):
        read_routes(path)


PLACE = re.compile(r"uri|url|location|path|source|link|root|destination|file|folder|dir|host|address|bucket|repo")
# Fields of open routes that sound like a place; each is refused by the server, below a run's own files, or only kept.
PLACES = {
    ("POST", "experiments/create", "artifact_location"): "refused",
    ("POST", "model-versions/create", "source"): "refused, but for the files of a run or a LoggedModel",
    ("POST", "model-versions/create", "run_link"): "refused",
    ("GET", "artifacts/list", "path"): "below the run's files",
    ("GET", "artifacts", "path"): "below the folder of all artifacts, which everyone reads",
    ("GET", "logged-models/<model_id>/artifacts/directories", "artifact_directory_path"): "below the model's files",
    ("POST", "logged-models", "source_run_id"): "an id",
    ("POST", "runs/log-inputs", "datasets.dataset.source"): "text that is kept and shown",
    ("POST", "runs/log-inputs", "datasets.dataset.source_type"): "text that is kept and shown",
    ("POST", "runs/log-inputs", "datasets.dataset.profile"): "text that is kept and shown",
}


def list_fields(message: Any, prefix: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the dotted names of a message's fields, those of messages in it too."""
    for field in message.fields:
        yield prefix + field.name
        if (inner := field.message_type) and inner.full_name not in above:
            yield from list_fields(inner, f"{prefix}{field.name}.", (*above, inner.full_name))


def test_every_field_of_an_open_route_that_names_a_place_is_known() -> None:
    found = set()
    for service in (MlflowService, ModelRegistryService, MlflowArtifactsService):
        for call in service.DESCRIPTOR.methods:
            for endpoint in call.GetOptions().Extensions[databricks_pb2.rpc].endpoints:
                for path in handlers._get_paths(endpoint.path, version=endpoint.since.major):
                    if TABLE.get((endpoint.method, path), "nobody") != "nobody":
                        name = re.sub(r".*/mlflow(-artifacts)?/", "", path)
                        fields = [field for field in list_fields(call.input_type) if PLACE.search(field)]
                        found |= {(endpoint.method, name, field) for field in fields}
    assert found == set(PLACES)
