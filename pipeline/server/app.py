"""MLflow's server behind an allow list: `--app-name team` with logins (examples/server.sh), `--app-name ui` without.

routes.txt lists every route of the locked MLflow and who may use it: `anyone`, a `login`, the `administrator`,
`nobody`. A request whose route is not open ends with 404 before MLflow sees it, whatever its login. A route of
`nothing` is closed too and gets an empty answer, because the interface shows an error where it gets a 404. MLflow then
checks the login and its permissions. Last, a request ends with 403 when it needs an administrator, or when it names a
place: the server decides where files lie, since MLflow reads and writes there with the server's rights.
"""

import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from flask import Response, request
from mlflow.protos.model_registry_pb2 import CreateModelVersion
from mlflow.protos.service_pb2 import CreateExperiment
from mlflow.server import app as flask_app
from mlflow.server import auth, fastapi_app, handlers
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

from pipeline.history import mlflow_store

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

ROUTES = Path(__file__).with_name("routes.txt")
WHO = ("anyone", "login", "administrator", "nothing", "nobody")
NOTHING = b'{"endpoints": []}'  # what MLflow answers that has no gateway, whose list is the one route of `nothing`
# A path that could be read in two ways passes under no reading: "%" is left when a path was encoded twice.
UNCLEAR = re.compile(r"[%\\?\x00-\x1f\x7f]|//|/\.{1,2}(/|$)")
# Own artifacts of a run or a LoggedModel; that they are its own is checked by MLflow.
SOURCE = re.compile(r"models:/m-[0-9a-f]{32}|runs:/[0-9a-f]{32}/[\w./ -]+|mlflow-artifacts:/\w[\w./ -]*")


def read_routes(path: Path = ROUTES) -> dict[tuple[str, str], str]:
    """Return who may use each route, by method and path."""
    routes: dict[tuple[str, str], str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            who, method, route = line.split()
            if who not in WHO or (method, route) in routes:
                msg = f"{path}: {line}: expected a new route and one of {', '.join(WHO)}"
                raise ValueError(msg)
            routes[method, route] = who
    return routes


class Gate:
    """Answers 404 to every request whose route is not open, and passes on the others unchanged."""

    def __init__(self, app: App, routes: dict[tuple[str, str], str]) -> None:
        self.app = app
        self.methods = {method for method, _ in routes}
        # Closed routes are in the map too: where two match, werkzeug takes the one that MLflow's Flask app takes.
        rules = [Rule(route, methods=[method], endpoint=who) for (method, route), who in routes.items()]
        self.adapter = Map(rules, merge_slashes=False, redirect_defaults=False).bind("localhost")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in {"http", "lifespan"}:
            await send({"type": "websocket.close"})
        elif scope["type"] == "lifespan" or (who := self.find_who(scope)) not in {"nobody", "nothing"}:
            await self.app(scope, receive, send)
        elif who == "nothing":
            await answer(send, 200, b"application/json", NOTHING)
        else:
            await answer(send, 404, b"text/plain", b"This server does not offer that.\n")

    def find_who(self, scope: Message) -> str:
        """Return who may use the route that the request is for."""
        method, path = scope["method"], scope["path"]
        if method not in self.methods or scope.get("root_path") or not path.startswith("/") or UNCLEAR.search(path):
            return "nobody"
        try:
            who, _ = self.adapter.match(path, method)
        except HTTPException:  # no such route, or one that would redirect
            return "nobody"
        return str(who)


async def answer(send: Send, status: int, kind: bytes, body: bytes) -> None:
    """Send an answer that does not come from MLflow."""
    headers = [(b"content-type", kind), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def find_place(route: str) -> str:
    """Return the field by which the request names a place, or nothing."""
    # The message as the handler will see it: JSON within JSON, both spellings of a field.
    if route.endswith("/mlflow/experiments/create"):
        experiment = handlers._get_request_message(CreateExperiment())  # noqa: SLF001
        return "artifact_location" if experiment.artifact_location else ""
    if route.endswith("/mlflow/model-versions/create"):
        version = handlers._get_request_message(CreateModelVersion())  # noqa: SLF001
        if not SOURCE.fullmatch(version.source) or ".." in version.source:
            return "source"
        return "run_link" if version.run_link else ""
    return ""


def create_app() -> Gate:
    """Return the server's app; `mlflow server --app-name team` calls it in each worker."""
    if os.environ.get("_MLFLOW_SGI_NAME") != "uvicorn" or os.environ.get(handlers.STATIC_PREFIX_ENV_VAR):
        msg = "the team server runs under uvicorn and without a static prefix: start it with examples/server.sh"
        raise RuntimeError(msg)
    routes = read_routes()
    app = auth.create_app()
    flask_app.before_request(lambda: check(routes))
    return Gate(app, routes)


def create_ui() -> Gate:
    """Return the app of `pipeline ui`, which has no logins: what is left of the routes without an administrator."""
    mlflow_store.follow_folder(Path.cwd())  # where `mlflow ui` takes its store from
    routes = {route: "nobody" if who == "administrator" else who for route, who in read_routes().items()}
    flask_app.before_request(lambda: check(routes))
    return Gate(fastapi_app.app, routes)


def check(routes: dict[tuple[str, str], str]) -> Response | None:
    """Refuse what is open only to others; MLflow has checked the login by now."""
    route = request.url_rule.rule if request.url_rule else ""
    who = routes.get((request.method, route), "nobody")
    if who in {"nobody", "nothing"}:
        return Response("This server does not offer that.\n", 404)
    if who == "administrator" and not auth.sender_is_admin():
        return Response("Only an administrator may do that.\n", 403)
    if place := find_place(route):
        return Response(f"{place}: the server decides where files lie.\n", 403)
    return None
