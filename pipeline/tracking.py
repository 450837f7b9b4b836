"""Feeds MLflow from a run's record; with serving.py the only code that imports mlflow.

The store is sqlite:///<DVC_ROOT>/mlflow.db, where `mlflow ui` looks by default, unless MLFLOW_TRACKING_URI names a
server. A thread sends what the record holds: the training loop never waits for the tracker, and an outage becomes a
warning. MLflow's run is found by the tag `record.id`, so a resumed training, an evaluation and a fresh clone all
write to the same run, or re-create it.
"""

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import numpy as np
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline.record import Record

log = logging.getLogger(__name__)
SECONDS_BETWEEN_SENDS = 5
LONGEST_VALUE = 6000  # of an MLflow parameter; the full config is an artifact


def connect() -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id; creates store and experiment once, under a lock between processes."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "generative-experiments")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # In a temporary experiment DVC_ROOT is the main repository: its store outlives the temporary folder.
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    with FileLock(root / "mlflow.lock"):
        client = MlflowClient()
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return client, str(experiment.experiment_id)
        location = (root / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
        return client, str(client.create_experiment(name, artifact_location=location))


class Mirror:
    """Keeps MLflow's run equal to a record: `start` a thread, or `send` once; `close` when the record is finished."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.failed = False
        self.is_new = False  # whether this process created MLflow's run
        self.resumed_step = -1  # what an earlier process has sent
        self.sent_lines = 0
        self.sent_files: set[Path] = set()
        self.stop = threading.Event()
        self.thread: threading.Thread | None = None
        self.monitor: SystemMetricsMonitor | None = None
        self.client: MlflowClient | None = None
        self.run_id = ""
        self._attempt(self._open)

    def _attempt(self, action: Any, *arguments: Any) -> None:
        """Call the tracker; a failure is said once and never stops the work: the record has everything."""
        try:
            action(*arguments)
        except (MlflowException, OSError) as error:
            if not self.failed:
                log.warning("MLflow is not reachable (%s); the record %s keeps all", error, self.record.folder)
            self.failed = True

    def _open(self) -> None:
        about = self.record.about
        self.client, experiment = connect()
        found = self.client.search_runs([experiment], f"tags.`record.id` = '{about['id']}'", max_results=1)
        if found:
            run: Run = found[0]
            self.run_id = run.info.run_id
            for key in run.data.metrics:
                if not key.startswith("system/"):
                    history = self.client.get_metric_history(self.run_id, key)
                    self.resumed_step = max([self.resumed_step, *(metric.step for metric in history)])
            folder = self.record.folder
            for listed in ("images", "texts"):
                sent = {Path(item.path).name for item in self.client.list_artifacts(self.run_id, listed)}
                self.sent_files |= {path for path in (folder / listed).rglob("*.*") if path.parent.name in sent}
            self.client.update_run(self.run_id, status="RUNNING")
            return
        tags = {**about["tags"], "record.id": about["id"], **_prefix("environment", about["environment"])}
        start = int(about["started"] * 1000)
        run = self.client.create_run(experiment, start_time=start, tags=tags, run_name=about["name"])
        self.run_id = run.info.run_id
        self.is_new = True
        parameters = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in about["parameters"].items()]
        for index in range(0, len(parameters), 100):
            self.client.log_batch(self.run_id, params=parameters[index : index + 100])
        self.client.log_dict(self.run_id, about["config"], "config.json")
        self.client.log_inputs(self.run_id, [_dataset(entry) for entry in about["datasets"]])

    def start(self) -> "Mirror":
        """Send in a thread from now on, and record the system's load (CPU, memory, disk, network, GPU)."""
        if not self.failed:
            logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
            self.monitor = SystemMetricsMonitor(
                self.run_id, resume_logging=True, tracking_uri=mlflow.get_tracking_uri()
            )
            self._attempt(self.monitor.start)
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()
        return self

    def _loop(self) -> None:
        while not self.stop.wait(SECONDS_BETWEEN_SENDS):
            self._attempt(self.send)

    def send(self) -> None:
        """Send the lines, images and texts that MLflow does not have."""
        if self.client is None:
            return
        recorded = self.record.read()  # a step may get a second line: a preview's score follows the losses
        lines = [line for line in recorded[self.sent_lines :] if line["step"] > self.resumed_step]
        metrics = [
            Metric(key, value, int(line["time"] * 1000), line["step"])
            for line in lines
            for key, value in line["values"].items()
        ]
        for index in range(0, len(metrics), 1000):
            self.client.log_batch(self.run_id, metrics=metrics[index : index + 1000])
        self.sent_lines = len(recorded)
        for path in sorted((self.record.folder / "images").rglob("*.png")):
            if path not in self.sent_files:
                pixels = np.asarray(Image.open(path))
                self.client.log_image(self.run_id, pixels, key=path.parent.name, step=int(path.stem))
                self.sent_files.add(path)
        for path in sorted((self.record.folder / "texts").rglob("*.txt")):
            if path not in self.sent_files:
                self.client.log_artifact(self.run_id, str(path), f"texts/{path.parent.name}")
                self.sent_files.add(path)

    def log_model(self, folder: Path) -> None:
        """Store the model as a LoggedModel of the run: `mlflow.pyfunc.load_model(uri).predict([seed, ...])`."""
        if self.client is not None:
            self._attempt(self._log_model, folder)

    def _log_model(self, folder: Path) -> None:
        package = Path(__file__).parent
        versions = self.record.about["environment"]
        names = ("torch", "pytorch-lightning", "numpy", "mlflow")
        with mlflow.start_run(run_id=self.run_id, log_system_metrics=False):
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(package / "serving.py"),
                artifacts={"model": str(folder)},
                code_paths=[str(package)],
                pip_requirements=[f"{name}=={versions[name]}" for name in names]
                + ["pydantic", "ruamel.yaml", "safetensors", "tokenizers", "torchvision"],
                step=max((line["step"] for line in self.record.read()), default=0),
            )

    def close(self, values: dict[str, float] | None = None, step: int = 0) -> None:
        """Send the rest and `values` (an evaluation's), and set the run's status, end and totals from the record."""
        self.stop.set()
        if self.thread is not None:
            self.thread.join(timeout=60)
        if self.monitor is not None:
            self._attempt(self.monitor.finish)
        self._attempt(self.send)
        self._attempt(self._close, values or {}, step)

    def _close(self, values: dict[str, float], step: int) -> None:
        if self.client is None:
            return
        about = self.record.about
        now = int(about["ended"] * 1000)
        values = {**_prefix("cost", about.get("totals", {})), **values}
        metrics = [Metric(key, float(value), now, step) for key, value in values.items()]
        tags = [RunTag(key, value) for key, value in about["tags"].items()]
        self.client.log_batch(self.run_id, metrics=metrics, tags=tags)
        if "failure" not in about["tags"] and "failure" in self.client.get_run(self.run_id).data.tags:
            self.client.delete_tag(self.run_id, "failure")  # of an earlier attempt
        self.client.set_terminated(self.run_id, about["status"], end_time=now)


def _prefix(name: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in values.items()}


def _dataset(entry: dict[str, str]) -> DatasetInput:
    """Describe one split: the digest is the md5 under which DVC keeps the folder."""
    dataset = Dataset(
        name=entry["name"],
        digest=entry["md5"][:36],  # MLflow's limit
        source_type="dvc",
        source=json.dumps({"uri": entry["path"]}),
        profile=json.dumps({"sha256": entry["sha256"], "examples": entry["examples"]}),
    )
    tags = [InputTag("mlflow.data.context", entry["context"]), InputTag("dvc.md5", entry["md5"])]
    return DatasetInput(dataset, tags)
