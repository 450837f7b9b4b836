"""Feeds MLflow from a run's record; with serving.py and server/ the only code that imports mlflow.

The store is sqlite:///<DVC_ROOT>/mlflow.db, where `mlflow ui` looks by default, unless MLFLOW_TRACKING_URI names a
server. A thread sends what MLflow lacks of the record: the training never waits for the tracker, and an outage becomes
a warning. MLflow's run is found by the tag `record.id`, so a resumed training, an evaluation, `pipeline sync` and a
fresh clone all write to the same run, or re-create it; what is there already is not sent again.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import numpy as np
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelStatus, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor
from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline.record import Record, is_gone

log = logging.getLogger(__name__)
SECONDS_BETWEEN_SENDS = 5
SECONDS_BETWEEN_SAMPLES = 10  # of the machine's load, as MLflow takes them
LONGEST_VALUE = 6000  # of an MLflow parameter; the full config is an artifact
LONGEST_KEY = 250
LONGEST_TAG = 5000
PASSING = ("alarm", "failure", "nonfinite")  # tags that a later attempt or step may take back
HEARTBEAT = "system/cpu_utilization_percentage"


def connect() -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id; processes that start at once make store and experiment once."""
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
            return client, str(found.experiment_id)
        location = (root / "mlartifacts").as_uri() if is_file else None
        try:
            return client, str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            if found := client.get_experiment_by_name(name):  # another machine was faster
                return client, str(found.experiment_id)
            raise


class Mirror:
    """Keeps MLflow's run equal to a record: `start` threads while it grows, `close` when it has ended.

    `failed` says whether MLflow lacks something because it could not be reached.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.failed = False
        self.client: Any = None
        self.experiment = ""
        self.run_id = ""  # of the open run; empty when what MLflow has must be asked (again)
        self.tags: dict[str, str] = {}  # that MLflow has
        self.sent: set[tuple[str, int]] = set()  # (metric, step) pairs that MLflow has
        self.sent_files: set[tuple[str, str, int]] = set()  # (images or texts, key, step)
        self.read: dict[str, int] = {}  # bytes of the record's files that were dealt with
        self.closing = threading.Event()
        self.sampled = threading.Event()
        self.threads: list[threading.Thread] = []
        self.ending: Callable[[], None] = self.send

    def start(self) -> "Mirror":
        """From now on send in a thread what the record gets, and record the machine's load."""
        targets = {"tracker": self._send_on, "load": self._sample_on}
        self.threads = [threading.Thread(target=target, name=name, daemon=True) for name, target in targets.items()]
        for thread in self.threads:
            thread.start()
        return self

    def close(
        self,
        values: dict[str, float] | None = None,
        step: int = 0,
        *,
        tags: dict[str, str] | None = None,
        model: Path | None = None,
        seconds: float = 300,
    ) -> None:
        """Send the rest, then the run's status, end and totals from the record; takes about `seconds` at most.

        Args:
            values: an evaluation's values, stamped with now, so that the latest evaluation is what MLflow shows.
            step: of these values.
            tags: further tags.
            model: folder of a model that becomes the run's LoggedModel, unless it has one:
                `mlflow.pyfunc.load_model(uri).predict([seed, ...])`.
            seconds: after these a tracker that does not answer is left to `pipeline sync`.
        """
        self.sampled.set()
        for thread in self.threads[1:]:
            thread.join(1)  # its last sample is to be sent
        self.ending = lambda: self._end(values or {}, step, tags or {}, model)
        self.closing.set()
        if not self.threads:
            self.threads = [threading.Thread(target=self._send_on, name="tracker", daemon=True)]
            self.threads[0].start()
        self.threads[0].join(seconds)
        if self.threads[0].is_alive():
            self.failed = True
            log.warning("MLflow does not answer; `pipeline sync` sends it the rest of %s", self.record.folder)

    def _send_on(self) -> None:
        while not self.closing.is_set():
            self._attempt(self.send)
            self.closing.wait(SECONDS_BETWEEN_SENDS)
        self.ending()

    def _end(self, values: dict[str, float], step: int, tags: dict[str, str], model: Path | None) -> None:
        done = self._attempt(self.send)
        if done and model is not None:
            done = self._attempt(self._log_model, model)  # it sets a status, so the record's comes after it
            done &= self._attempt(self.send)
        self.failed = not (self._attempt(self._close, values, step, tags) and done) if self.run_id else True

    def _attempt(self, action: Callable[..., None], *arguments: Any) -> bool:
        """Call the tracker; a failure is said once an outage and never stops the work: the record has everything."""
        try:
            action(*arguments)
        except Exception as error:  # noqa: BLE001 - a training must not end by whatever a tracker raises
            if not self.failed:
                log.warning("MLflow is not reachable (%s); the record %s keeps all", error, self.record.folder)
            self.failed = True
            self.run_id = ""
            return False
        self.failed = False
        return True

    def _sample_on(self) -> None:
        """Record the machine's load every few seconds, and once at the end."""
        monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        for kind in (GPUMonitor, ROCMMonitor):
            with contextlib.suppress(ImportError, RuntimeError):  # no such GPU
                monitors.append(kind())
        while not self.sampled.wait(SECONDS_BETWEEN_SAMPLES):
            self._sample(monitors)
        self._sample(monitors)

    def _sample(self, monitors: list[Any]) -> None:
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        with contextlib.suppress(OSError):  # a full disk
            self.record.log_load(values)

    def send(self) -> None:
        """Send the values, images and texts that MLflow does not have; find or make its run first."""
        if not self.run_id:
            self._open()
        self._send_tags(self.run_id)
        for name, prefix in (("metrics", ""), ("system", "system/")):
            lines, end = self.record.read_on(name, self.read.get(name, 0))
            metrics = [
                Metric(key, value, int(line["time"] * 1000), line["step"])
                for line in lines
                for key, value in ((_key(prefix + key), value) for key, value in line["values"].items())
                if (key, line["step"]) not in self.sent
            ]
            for index in range(0, len(metrics), 1000):
                self.client.log_batch(self.run_id, metrics=metrics[index : index + 1000])
            self.sent |= {(metric.key, metric.step) for metric in metrics}
            self.read[name] = end
        for path in sorted((self.record.folder / "images").glob("*/*.png")):
            self._send_file(path, self._send_image)
        for path in sorted((self.record.folder / "texts").glob("*/*.txt")):
            self._send_file(path, self._send_text)

    def _send_file(self, path: Path, send: Callable[[Path], None]) -> None:
        name = (path.parent.parent.name, path.parent.name, int(path.stem))
        if name not in self.sent_files:
            send(path)
            self.sent_files.add(name)

    def _send_image(self, path: Path) -> None:
        self.client.log_image(self.run_id, np.asarray(Image.open(path)), key=path.parent.name, step=int(path.stem))

    def _send_text(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path), f"texts/{path.parent.name}")

    def _open(self) -> None:
        """Find or make the run, complete its description, and ask what it has."""
        about = self.record.about
        self.client, self.experiment = connect()
        found = self.client.search_runs([self.experiment], f"tags.`record.id` = '{about['id']}'", max_results=1)
        run: Run = found[0] if found else self._make()
        run_id = run.info.run_id
        self.tags = {key: run.data.tags[key] for key in {*self._list_tags(), *PASSING} & run.data.tags.keys()}
        self._complete(run)
        self.sent = {
            (key, metric.step) for key in run.data.metrics for metric in self.client.get_metric_history(run_id, key)
        }
        self.sent_files = self._list_files(run_id)
        self.read = {}
        if about["status"] == "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
            self._close_stale(run_id)
        self.run_id = run_id

    def _make(self) -> Run:
        about = self.record.about
        start = int(about["started"] * 1000)
        return self.client.create_run(self.experiment, start, self._list_tags(), about["name"])

    def _list_tags(self) -> dict[str, str]:
        about = self.record.about
        process = {"process": about["process"]} if "process" in about else {}
        tags = {**about["tags"], "record.id": about["id"], **process, **_prefix("environment", about["environment"])}
        return {key: _text(value, LONGEST_TAG) for key, value in tags.items()}

    def _send_tags(self, run_id: str) -> None:
        """Set the tags that changed, and drop those that no longer hold."""
        tags = self._list_tags()
        changed = [RunTag(key, value) for key, value in tags.items() if self.tags.get(key) != value]
        for index in range(0, len(changed), 100):
            self.client.log_batch(run_id, tags=changed[index : index + 100])
        for key in self.tags.keys() - tags.keys():
            self.client.delete_tag(run_id, key)
        self.tags = tags

    def _complete(self, run: Run) -> None:
        """Add what a run lacks of its parameters, config and data sets: making it may have been cut off."""
        run_id, about = run.info.run_id, self.record.about
        given = {_key(key): _text(value, LONGEST_VALUE) for key, value in about["parameters"].items()}
        parameters = [Param(key, value) for key, value in given.items() if key not in run.data.params]
        for index in range(0, len(parameters), 100):
            self.client.log_batch(run_id, params=parameters[index : index + 100])
        if all(item.path != "config.json" for item in self.client.list_artifacts(run_id)):
            self.client.log_dict(run_id, about["config"], "config.json")
        if not (run.inputs and run.inputs.dataset_inputs):
            self.client.log_inputs(run_id, [_dataset(entry) for entry in about["datasets"]])

    def _list_files(self, run_id: str) -> set[tuple[str, str, int]]:
        """Return which images and texts MLflow has: log_image names a file <key>+step+<step>+..."""
        names = [Path(item.path).name for item in self.client.list_artifacts(run_id, "images")]
        matches = [re.match(r"(.+)\+step\+(\d+)\+", name) for name in names]
        found = {("images", match[1], int(match[2])) for match in matches if match}
        for folder in self.client.list_artifacts(run_id, "texts"):
            for item in self.client.list_artifacts(run_id, folder.path):
                found.add(("texts", Path(folder.path).name, int(Path(item.path).stem)))
        return found

    def _close_stale(self, run_id: str) -> None:
        """Set runs of the same name to KILLED that are RUNNING though their process is gone; link ours to the last."""
        name = self.record.about["name"].replace("'", "")
        query = f"attributes.status = 'RUNNING' and attributes.run_name = '{name}'"
        for run in self.client.search_runs([self.experiment], query):
            if run.info.run_id == run_id or not is_gone(run.data.tags.get("process", "")):
                continue
            beats = [metric.timestamp for metric in self.client.get_metric_history(run.info.run_id, HEARTBEAT)]
            self.client.set_tag(run.info.run_id, "failure", "the process ended without a word")
            self.client.set_terminated(run.info.run_id, "KILLED", end_time=max(beats, default=run.info.start_time))
            self.client.set_tag(run_id, "follows", run.data.tags["record.id"])

    def _log_model(self, folder: Path) -> None:
        query = f"source_run_id = '{self.run_id}'"
        models = self.client.search_logged_models([self.experiment], query)
        if any(model.status == LoggedModelStatus.READY for model in models):
            return
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

    def _close(self, values: dict[str, float], step: int, tags: dict[str, str]) -> None:
        about = self.record.about
        data = self.client.get_run(self.run_id).data
        now, ended = int(time.time() * 1000), int(about["ended"] * 1000)
        costs = _prefix("cost", about.get("totals", {}))
        metrics = [
            Metric(_key(key), float(value), stamp, step)
            for given, stamp in ((costs, ended), (values, now))
            for key, value in given.items()
            if math.isfinite(value) and data.metrics.get(_key(key)) != float(value)
        ]
        self.client.log_batch(self.run_id, metrics, tags=[RunTag(key, value) for key, value in tags.items()])
        self.client.set_terminated(self.run_id, about["status"], end_time=ended)


def _prefix(name: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in values.items()}


def _key(name: str) -> str:
    """Return a name that MLflow takes: no signs but _-./: and space, no way out of a folder, not too long."""
    parts = re.sub(r"[^\w\-./: ]", "_", name).split("/")
    name = "/".join(part for part in parts if part not in {"", ".", ".."})
    if len(name) > LONGEST_KEY:
        return f"{name[: LONGEST_KEY - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def _text(value: object, longest: int) -> str:
    """Return a value as text that every database takes: no lone surrogates, no zero characters, not too long."""
    return str(value).encode("utf-8", "replace").decode().replace("\0", "\\0")[:longest]


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
