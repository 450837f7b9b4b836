"""Finds MLflow's store, and words names and values as every store takes them.

The store is sqlite:///<DVC_ROOT>/mlflow.db, where `mlflow ui` looks by default, unless MLFLOW_TRACKING_URI names a
server. MLFLOW_EXPERIMENT_NAME names the experiment (generative-experiments).
"""

import contextlib
import hashlib
import os
import re
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.artifacts import ArtifactError

MAX_VALUE_LENGTH = 6000  # of an MLflow parameter; the full config is an artifact
MAX_KEY_LENGTH = 250
MAX_TAG_LENGTH = 5000


def connect() -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id; processes that start at once create store and experiment once."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "generative-experiments")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # In a temporary experiment DVC_ROOT is the main repository: its store outlives the temporary folder.
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    is_file = uri.startswith("sqlite")
    with FileLock(root / "mlflow.lock") if is_file else contextlib.nullcontext():
        client = MlflowClient(uri)
        if found := client.get_experiment_by_name(name):
            _refuse_deleted(found)
            return client, str(found.experiment_id)
        location = (root / "mlartifacts").as_uri() if is_file else None
        try:
            return client, str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            if found := client.get_experiment_by_name(name):  # another machine was faster
                return client, str(found.experiment_id)
            raise


def _refuse_deleted(experiment: Experiment) -> None:
    """Refuse an experiment in MLflow's trash, which takes no run, and keeps its name from another one."""
    if experiment.lifecycle_stage == "deleted":
        msg = (
            f"MLflow's experiment {experiment.name!r} is deleted; "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}` brings it back, "
            "or MLFLOW_EXPERIMENT_NAME names another one"
        )
        raise ArtifactError(msg)


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
