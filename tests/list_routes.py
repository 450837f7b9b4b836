"""Prints every route of the installed MLflow server with logins, `METHOD path` a line: `python -m tests.list_routes`.

Importing the server starts its stores, so the tests run this in a process of its own.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETTINGS = {
    "_MLFLOW_SGI_NAME": "uvicorn",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret",
    "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "a long password",
}


def walk(routes: list[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield method and path of FastAPI's routes, those of included routers too; the mounted Flask app is not one."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from walk(route.original_router.routes, prefix + route.include_context.prefix)
        elif hasattr(route, "methods"):
            path = re.sub(r"{(\w+):path}", r"<path:\1>", prefix + route.path)
            yield from ((method, re.sub(r"{(\w+)}", r"<\1>", path)) for method in route.methods)
        elif (type(route).__name__, prefix + route.path) != ("Mount", ""):
            msg = f"a route of a kind that this file does not know: {route}"
            raise TypeError(msg)


def main() -> None:
    """Print the routes in order of their paths."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "auth.ini"
        path.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n")
        os.environ.update(SETTINGS, MLFLOW_AUTH_CONFIG_PATH=str(path))
        os.environ["MLFLOW_BACKEND_STORE_URI"] = f"sqlite:///{folder}/mlflow.db"

        from mlflow.server import app as flask_app
        from mlflow.server import auth

        found = set(walk(auth.create_app().routes))
        for rule in flask_app.url_map.iter_rules():
            found |= {(method, rule.rule) for method in rule.methods or () if method not in {"HEAD", "OPTIONS"}}
    for route, method in sorted((route, method) for method, route in found):
        print(method, route)


if __name__ == "__main__":
    main()
