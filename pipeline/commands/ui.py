"""Shows the runs in MLflow's interface, and opens a browser where there is a display.

    pipeline ui                  # at http://127.0.0.1:5000, for this machine only
    pipeline ui --port 5001

The printed address leads to the charts of the experiment, in MLflow's mode for trained models. If MLFLOW_TRACKING_URI
names a server, its address is shown, and none is started. docs/mlflow.md says what is where.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser

from pipeline import params
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.history.mlflow_notes import make_page_address
from pipeline.history.mlflow_store import connect
from pipeline.runtime import environment as settings

HOST = "127.0.0.1"
SECONDS_TO_START = 120


def main(arguments: list[str]) -> int:
    """Start the interface and wait for its end; of a server elsewhere print the address."""
    parser = make_parser("ui", __doc__)
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    options = parser.parse_args(arguments)
    if not settings.read_tracking_uri():
        params.require_project()  # elsewhere, MLflow would begin an empty store
    client, experiment = connect()
    store = str(client.tracking_uri)
    is_elsewhere = store.startswith(("http://", "https://"))
    root = hide(store.rstrip("/")) if is_elsewhere else f"http://{HOST}:{options.port}"
    address = f"{root}/{make_page_address(experiment)}"
    if is_elsewhere:
        print(address)
        return int(has_display() and not webbrowser.open(address))
    require_free(options.port)
    print(f"MLflow shows the runs at\n\n    {address}\n\nCtrl-C ends it.", flush=True)
    if has_display():
        threading.Thread(target=open_when_ready, args=(root, address), daemon=True).start()
    return serve(store, options.port)


def hide(address: str) -> str:
    """Return an address without a login: a browser asks for it, and keeps it out of its history."""
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def require_free(port: int) -> None:
    """Refuse a port on which another program listens.

    Raises:
        ArtifactError: with another port to try.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            msg = f"port {port}: expected a free one ({error}); `pipeline ui --port {5001 if port == 5000 else 5000}`"
            raise ArtifactError(msg) from None


def serve(store: str, port: int) -> int:
    """Run MLflow's server behind the allow list of pipeline/server until it ends, and return its status."""
    command = [sys.executable, "-m", "mlflow", "ui", "--app-name", "ui", "--backend-store-uri", store]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # nothing here needs its jobs
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]  # each takes seconds to start; one person looks
    process = subprocess.Popen(command, env=environment)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.terminate()
        process.wait()


def has_display() -> bool:
    """Whether a browser with windows can open: over ssh and in a container none can."""
    return sys.platform in {"darwin", "win32"} or any(map(settings.read_text, ("DISPLAY", "WAYLAND_DISPLAY")))


def open_when_ready(root: str, address: str) -> None:
    """Open a browser as soon as the server answers."""
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{root}/health", timeout=5):  # noqa: S310 - our own server
                webbrowser.open(address)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
