"""Shows the runs in a browser, and lets you play with their models: a page on this machine, for this machine only.

    pipeline show                    # at http://127.0.0.1:8000
    pipeline show --port 8001

The page of a run draws samples of a seed and a class, walks from one sample to another, finds the training example
nearest to a sample, plays sounds, and writes texts to your prompt. Control-C ends it.
"""

import socket

import uvicorn

from pipeline import params
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.pages.server import create_app

ADDRESS = "127.0.0.1"


def main(arguments: list[str]) -> int:
    """Serve the pages until the user ends them."""
    parser = make_parser("show", __doc__)
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    options = parser.parse_args(arguments)
    app = create_app(params.load())
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, options.port))
        except (OSError, OverflowError) as error:
            msg = f"--port {options.port}: expected a free port of {ADDRESS}, got: {error}"
            raise ArtifactError(msg) from error
        print(f"http://{ADDRESS}:{listener.getsockname()[1]} shows the runs; Control-C ends it", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
    return 0
