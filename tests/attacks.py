"""What a login without rights tries against our own server, on loopback; each attack returns the answers' statuses."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests

# Headers by which a client claims to be on the server's own machine, or another host, or to use another method.
FORGED = [
    {},
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-For": "127.0.0.1, 127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1;host=localhost"},
    {"X-Forwarded-Host": "localhost", "X-Forwarded-Prefix": "/static-files", "X-Forwarded-Proto": "https"},
    {"X-HTTP-Method-Override": "GET", "X-Original-URL": "/health", "X-Rewrite-URL": "/health"},
]


class Client:
    """Sends requests as one login, with headers of its own, to a server or its proxy."""

    def __init__(
        self,
        address: str,
        login: tuple[str, str],
        headers: dict[str, str] | None = None,
        certificate: Path | None = None,
    ) -> None:
        self.address = address
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.auth = login
        self.session.verify = str(certificate) if certificate else True
        self.session.headers.update(headers or {})

    def send(self, method: str, path: str, body: Any = None, **options: Any) -> requests.Response:
        """Send JSON to a path, which stays as it is written."""
        prepared = self.session.prepare_request(requests.Request(method, self.address, json=body, **options))
        query = prepared.url.partition("?")[2] if prepared.url else ""
        prepared.url = self.address + path + (f"?{query}" if query else "")  # requests would resolve dots and slashes
        return self.session.send(prepared, timeout=60, allow_redirects=False)


@contextmanager
def serve_model(command: str) -> Iterator[str]:
    """Serve a language model that always asks for one shell command; yield its address."""
    arguments = json.dumps({"command": command})
    call = {"index": 0, "id": "call1", "type": "function", "function": {"name": "Bash", "arguments": arguments}}
    first = {"choices": [{"delta": {"role": "assistant", "tool_calls": [call]}}]}
    chunks = [first, {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer("application/json", json.dumps({"models": [{"model": "m"}]}))

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            done = sent["messages"][-1]["role"] == "tool"
            parts = [{"choices": [{"delta": {"content": "done"}, "finish_reason": "stop"}]}] if done else chunks
            lines = [f"data: {json.dumps(part)}\n\n" for part in parts]
            self.answer("text/event-stream", "".join([*lines, "data: [DONE]\n\n"]))

        def answer(self, kind: str, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def ask_assistant(client: Client, model: str) -> list[int]:
    """Name a model server of one's own, grant it full access, and let it answer."""
    path = "/ajax-api/3.0/mlflow/assistant"
    provider = {"model": "m", "base_url": model, "selected": True, "permissions": {"full_access": True}}
    answers = [
        client.send("GET", f"{path}/config"),
        client.send("PUT", f"{path}/config", {"providers": {"ollama": provider}}),
        client.send(
            "POST", f"{path}/message", {"message": "hello", "session_id": "0" * 8 + "-0000-4000-8000-" + "0" * 12}
        ),
    ]
    stream = answers[-1].json()["stream_url"] if answers[-1].ok else f"{path}/sessions/{'0' * 8}/stream"
    answers.append(client.send("GET", stream))
    return [answer.status_code for answer in answers]


def write_a_file(client: Client, folder: Path) -> list[int]:
    """Create an experiment in a folder of the server's disk, and log a file to it through the server."""
    create, name = "/api/2.0/mlflow/experiments/create", f"in {folder}"
    place = folder.as_uri()
    bodies: list[Any] = [
        {"name": name, "artifact_location": place},
        {"name": f"{name} 2", "artifactLocation": place},
        json.dumps({"name": f"{name} 3", "artifact_location": place}),  # JSON within JSON, as old clients send it
        {"name": f"{name} 4", "artifact_location": str(folder)},
    ]
    answers = [client.send("POST", prefix + create[4:], body) for prefix in ("/api", "/ajax-api") for body in bodies]
    for number in [answer.json()["experiment_id"] for answer in answers if answer.ok]:
        made = client.send("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": number})
        run = made.json()["run"]["info"]["run_id"]
        path = "/ajax-api/2.0/mlflow/upload-artifact"
        client.send("POST", path, {"stolen": 1}, params={"run_uuid": run, "path": "a/evil.json"})
    return [answer.status_code for answer in answers]


READS = [
    ("GET", "/api/2.0/mlflow/users/list"),
    ("GET", "/ajax-api/2.0/mlflow/users/list"),
    ("GET", "/api/3.0/mlflow/gateway/secrets/list"),
    ("GET", "/ajax-api/3.0/mlflow/gateway/secrets/list"),
    ("GET", "/ajax-api/3.0/mlflow/gateway/secrets/config"),
    ("GET", "/api/3.0/mlflow/gateway/endpoints/list"),
    ("GET", "/ajax-api/3.0/mlflow/assistant/providers"),
    ("GET", "/api/2.0/mlflow/webhooks"),
    ("GET", "/api/3.0/mlflow/mcp-servers"),
    ("GET", "/signup"),
    ("POST", "/ajax-api/3.0/jobs/search"),
    ("POST", "/ajax-api/3.0/mlflow/demo/generate"),
    ("GET", "/ajax-api/3.0/mlflow/ui-telemetry"),
]


def read_secrets(client: Client) -> dict[str, int]:
    """Ask for users, the gateway's secrets and others' business."""
    return {path: client.send(method, path, {} if method == "POST" else None).status_code for method, path in READS}
