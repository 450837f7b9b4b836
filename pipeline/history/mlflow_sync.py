"""Keeps an MLflow run equal to a record.

A thread sends what MLflow lacks of the record: the training never waits for MLflow, and an outage becomes a warning.
MLflow's run is found by the tag `record.id`, so that a resumed training, an evaluation, `pipeline sync` and a fresh
clone all write to the same run, or create it again. Nothing is sent twice.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, RunTag

from pipeline.artifacts import ArtifactError
from pipeline.formats.download import hide_login
from pipeline.history import load, mlflow_files, mlflow_run
from pipeline.history.mlflow_names import COST, SYSTEM, TRAIN, name_quality
from pipeline.history.mlflow_store import connect, word_key
from pipeline.history.record import ExhibitId, Record
from pipeline.history.results import Results
from pipeline.runtime import environment

log = logging.getLogger(__name__)
SECONDS_BETWEEN_SENDS = 5
PASSING = ("alarm", "failure", "nonfinite", "process")  # tags that a later attempt or step may take back


class MlflowSync:
    """Sends a record: `start` begins a thread while the record grows, `finish` sends the rest and the run's end.

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
        self.exhibits: set[ExhibitId] = set()  # that MLflow has
        self.read: dict[str, int] = {}  # bytes of the record's files that were dealt with
        self.finishing = threading.Event()
        self.sampled = threading.Event()
        self.threads: list[threading.Thread] = []
        self.ending: Callable[[], None] = self.send

    def start(self) -> "MlflowSync":
        """Send in a thread whatever the record gets from now on, and record the machine's load in another."""
        self.threads = [
            threading.Thread(target=self._send_on, name="tracker", daemon=True),
            threading.Thread(target=load.sample_until, args=(self.sampled, self.record), name="load", daemon=True),
        ]
        for thread in self.threads:
            thread.start()
        return self

    def finish(
        self,
        results: Results | None = None,
        *,
        model: Path | None = None,
        seconds: float = 300,
    ) -> None:
        """Send the rest, then the run's status, end and totals from the record; takes about `seconds` at most.

        Args:
            results: an evaluation; its values are stamped with now, so that the latest one is what MLflow shows.
            model: folder of a model that becomes the run's LoggedModel, unless it has one:
                `mlflow.pyfunc.load_model(uri).predict([seed, ...])`. By default it is next to a finished record.
            seconds: after these a tracker that does not answer is left to `pipeline sync`.
        """
        self.sampled.set()
        for thread in self.threads[1:]:
            thread.join(1)  # its last sample is to be sent
        stored = self.record.folder.with_name("model")
        if model is None and self.record.about["status"] == "FINISHED" and stored.exists():
            model = stored  # an evaluation or `pipeline sync`, whose run may have been deleted from MLflow for good
        self.ending = lambda: self._end(results, model)
        self.finishing.set()
        if not self.threads:
            self.threads = [threading.Thread(target=self._send_on, name="tracker", daemon=True)]
            self.threads[0].start()
        self.threads[0].join(seconds)
        if self.threads[0].is_alive():
            self.failed = True
            log.warning("MLflow does not answer; `pipeline sync` sends it the rest of %s", self.record.folder)

    def _send_on(self) -> None:
        while not self.finishing.is_set():
            self._attempt(self.send)
            self.finishing.wait(SECONDS_BETWEEN_SENDS)
        self.ending()

    def _end(self, results: Results | None, model: Path | None) -> None:
        done = self._attempt(self.send)
        if done and model is not None:
            done = self._attempt(self._log_model, model)  # it sets a status, so the record's comes after it
            done &= self._attempt(self.send)
        self.failed = not (self._attempt(self._finish, results) and done) if self.run_id else True

    def _attempt(self, action: Callable[..., None], *arguments: Any) -> bool:
        """Call MLflow; an outage is one warning and never stops the work, because the record has everything."""
        try:
            action(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises, a training goes on
            if not self.failed:
                cause = error if isinstance(error, ArtifactError) else f"MLflow is not reachable ({error})"
                said = hide_login(str(cause), environment.read_tracking_uri())
                log.warning("%s; the record %s keeps all", said, self.record.folder)
            self.failed = True
            self.run_id = ""
            return False
        self.failed = False
        return True

    def send(self) -> None:
        """Send the values and exhibits that MLflow does not have; find or make its run first."""
        if not self.run_id:
            self._open()
        self._send_tags(self.run_id)
        for name, prefix in (("metrics", TRAIN), ("system", SYSTEM)):
            lines, end = self.record.read_on(name, self.read.get(name, 0))
            metrics = [
                Metric(key, value, int(line["time"] * 1000), line["step"])
                for line in lines
                for key, value in ((word_key(prefix + key), value) for key, value in line["values"].items())
                if (key, line["step"]) not in self.sent
            ]
            for index in range(0, len(metrics), 1000):
                self.client.log_batch(self.run_id, metrics=metrics[index : index + 1000])
            self.sent |= {(metric.key, metric.step) for metric in metrics}
            self.read[name] = end
        for exhibit, path in self.record.list_exhibits().items():
            if exhibit not in self.exhibits:
                mlflow_files.send_exhibit(self.client, self.run_id, exhibit, path)
                self.exhibits.add(exhibit)

    def _open(self) -> None:
        """Find or create the run, complete its description, and ask what it has."""
        about = self.record.about
        self.client, self.experiment = connect()
        run = mlflow_run.find_or_create(self.client, self.experiment, about)
        run_id = run.info.run_id
        ours = {*mlflow_run.make_tags(about), *PASSING}
        self.tags = {key: run.data.tags[key] for key in ours & run.data.tags.keys()}
        mlflow_run.complete(self.client, run, about)
        self.sent = {
            (key, metric.step) for key in run.data.metrics for metric in self.client.get_metric_history(run_id, key)
        }
        self.exhibits = mlflow_files.list_exhibits(self.client, run_id)
        self.read = {}
        if about["status"] == "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
            mlflow_run.close_stale(self.client, self.experiment, run_id, about["name"])
        self.run_id = run_id

    def _send_tags(self, run_id: str) -> None:
        """Set the tags that changed, and drop those that no longer hold."""
        tags = mlflow_run.make_tags(self.record.about)
        changed = [RunTag(key, value) for key, value in tags.items() if self.tags.get(key) != value]
        for index in range(0, len(changed), 100):
            self.client.log_batch(run_id, tags=changed[index : index + 100])
        for key in self.tags.keys() - tags.keys():
            self.client.delete_tag(run_id, key)
        self.tags = tags

    def _log_model(self, folder: Path) -> None:
        step = max((line["step"] for line in self.record.read()), default=0)
        mlflow_files.log_model(self.client, self.experiment, self.run_id, folder, self.record.about, step)
        mlflow_files.register_model(self.client, self.experiment, self.run_id, self.record.about["name"])

    def _finish(self, results: Results | None) -> None:
        about = self.record.about
        run = self.client.get_run(self.run_id)
        now, ended = int(time.time() * 1000), int(about["ended"] * 1000)
        costs = {f"{COST}{key}": value for key, value in about.get("totals", {}).items()}
        metrics = [
            Metric(word_key(key), float(value), stamp, 0)
            for given, stamp in ((costs, ended), (name_quality(results) if results else {}, now))
            for key, value in given.items()
            if math.isfinite(value) and run.data.metrics.get(word_key(key)) != float(value)
        ]
        tags = mlflow_run.make_result_tags(results) if results else {}
        self.client.log_batch(self.run_id, metrics, tags=[RunTag(word_key(key), value) for key, value in tags.items()])
        if results and results.folder:
            mlflow_files.send_results(self.client, run, results.folder)
        mlflow_run.describe(self.client, self.experiment, self.run_id, about, results)
        self.client.set_terminated(self.run_id, about["status"], end_time=ended)
