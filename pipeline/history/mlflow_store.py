"""Finds MLflow's store, and words names and values as every store takes them.

The store is <DVC_ROOT>/mlflow.db, where `mlflow ui` looks by default, unless MLFLOW_TRACKING_URI names a server.
MLFLOW_EXPERIMENT_NAME names the experiment (generative-experiments). The artifacts are in <DVC_ROOT>/mlartifacts.

MLflow stores the absolute address of every artifact. `follow_folder` corrects them after a project was moved or copied.
"""

import contextlib
import hashlib
import logging
import os
import re
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from filelock import FileLock
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import URL, make_url

from pipeline.artifacts import ArtifactError
from pipeline.runtime import environment

log = logging.getLogger(__name__)
STORE, ARTIFACTS = "mlflow.db", "mlartifacts"
ADDRESSES = (  # the columns of the store that hold addresses of files: a URI, or a path
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)
MAX_VALUE_LENGTH = 6000  # of an MLflow parameter; the full config is an artifact
MAX_KEY_LENGTH = 250
MAX_TAG_LENGTH = 5000


def connect() -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id; processes that start at once create store and experiment once."""
    name = environment.read_experiment_name()
    root, uri = environment.read_root(), use_store()
    is_file = uri.startswith("sqlite")
    with FileLock(root / "mlflow.lock") if is_file else contextlib.nullcontext():
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(name)
        if is_file and Path(make_url(uri).database or "").resolve() == root / STORE:
            follow_folder(root)
        if found:
            _refuse_deleted(found)
            return client, str(found.experiment_id)
        location = (root / ARTIFACTS).as_uri() if is_file else None
        try:
            return client, str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            if found := client.get_experiment_by_name(name):  # another machine was faster
                return client, str(found.experiment_id)
            raise


def use_store() -> str:
    """Let MLflow use the project's store, or the server that the environment names; return its address."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # In a temporary experiment DVC_ROOT is the main repository: its store outlives the temporary folder.
    uri = environment.read_tracking_uri() or make_uri(environment.read_root() / STORE)
    mlflow.set_tracking_uri(uri)
    return uri


def _refuse_deleted(experiment: Experiment) -> None:
    """Refuse an experiment in MLflow's trash, which takes no run, and keeps its name from another one."""
    if experiment.lifecycle_stage == "deleted":
        msg = (
            f"MLflow's experiment {experiment.name!r} is deleted; "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}` brings it back, "
            "or MLFLOW_EXPERIMENT_NAME names another one"
        )
        raise ArtifactError(msg)


def make_uri(path: Path) -> str:
    """Return the address of a database file, whatever signs its path holds."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def follow_folder(root: Path) -> None:
    """Correct the addresses in a project's store, in one transaction, if they are those of another folder.

    An address stays if it leads to a folder that exists and that no store is next to: somebody chose that place.
    """
    path = root / STORE
    if not path.exists():
        return
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as database, database:
        locations = [str(location) for (location,) in database.execute("SELECT artifact_location FROM experiments")]
        for old in sorted({former for location in locations if (former := find_former(location, root))}):
            count = sum(
                replace_start(database, table, column, *pair)
                for table, column in ADDRESSES
                for pair in ((old.as_uri(), root.as_uri()), (str(old), str(root)))
            )
            log.warning("%s is from %s: its %d addresses of artifacts lead to %s now", path, old, count, root)


def find_former(location: str, root: Path) -> Path | None:
    """Return the project's former folder, if an experiment's artifacts are to be there; None if they are to stay."""
    if not (location.startswith("file:///") and location.endswith(f"/{ARTIFACTS}")):
        return None
    place = Path(unquote(urlsplit(location).path))
    is_chosen = place.exists() and not (place.parent / STORE).exists()
    return None if place.parent == root or is_chosen else place.parent


def replace_start(database: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    """Replace the folder `old`, where addresses start with it, by `new`; return the number of addresses."""
    command = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
    return database.execute(command, (new, len(old) + 1, len(old) + 1, f"{old}/")).rowcount


def word_key(name: str) -> str:
    """Return a name that MLflow takes: no signs but _-./: and space, no way out of a folder, not too long."""
    parts = re.sub(r"[^\w\-./: ]", "_", name).split("/")
    name = "/".join(part for part in parts if part not in {"", ".", ".."})
    if len(name) > MAX_KEY_LENGTH:
        return f"{name[: MAX_KEY_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def word_value(value: object, longest: int = MAX_VALUE_LENGTH) -> str:
    """Return a value as text that every database takes: no lone surrogates, no zero characters, not too long."""
    return str(value).encode("utf-8", "replace").decode().replace("\0", "\\0")[:longest]
