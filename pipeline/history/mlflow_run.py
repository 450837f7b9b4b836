"""Finds or creates the MLflow run of a record, and completes its description: name, tags, parameters, data sets."""

import contextlib
import hashlib
import logging
from typing import Any

from mlflow.entities import LifecycleStage, Param, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.history import mlflow_files
from pipeline.history.mlflow_names import FEW, NAMES, name_configuration, name_parameters
from pipeline.history.mlflow_notes import VIEW_TAG, Row, describe_experiment, describe_run, find_headline, make_view
from pipeline.history.mlflow_store import MAX_TAG_LENGTH, word_key, word_value
from pipeline.history.record import is_gone
from pipeline.history.results import Results

log = logging.getLogger(__name__)
HEARTBEAT = "system/cpu_utilization_percentage"
# MLflow shows no tag of the prefix `mlflow.`.
EDITION, NOTE_DIGEST, NOTE = "mlflow.pipeline.names", "mlflow.pipeline.note", "mlflow.note.content"
HEADLINE = "headline"


def find_or_create(client: MlflowClient, experiment: str, about: dict[str, Any]) -> Run:
    """Return the run with the record's id; `about` is the content of run.json.

    A run that was deleted in MLflow is restored with all that it had, such as its model. A run whose metrics have names
    of an older version goes to MLflow's trash, and a new one takes its place: MLflow can rename nothing.
    """
    found = client.search_runs([experiment], f"tags.`record.id` = '{about['id']}'", run_view_type=ViewType.ALL)
    ours = [run for run in found if run.data.tags.get(EDITION) == NAMES or not run.data.metrics]
    for run in found:
        if run not in ours and run.info.lifecycle_stage == LifecycleStage.ACTIVE:
            old = "%s: its run %s has names of an older version: it is in MLflow's trash, and a new one has all of it"
            log.warning(old, about["name"], run.info.run_id)
            with contextlib.suppress(MlflowException):  # on a team's server it may be another person's
                client.delete_run(run.info.run_id)
    active = [run for run in ours if run.info.lifecycle_stage == LifecycleStage.ACTIVE]
    if active:
        return active[0]
    if ours:
        log.warning("%s: its run was deleted in MLflow; it is restored", about["name"])
        client.restore_run(ours[0].info.run_id)
        return client.get_run(ours[0].info.run_id)
    return client.create_run(experiment, int(about["started"] * 1000), make_tags(about), about["name"])


def make_tags(about: dict[str, Any]) -> dict[str, str]:
    """Return the tags that a run of this description has."""
    process = {"process": about["process"]} if "process" in about and about["status"] == "RUNNING" else {}
    few = {name: about["environment"][name] for name in FEW if name in about["environment"]}
    group = {"configuration": name_configuration(about["config"])} if "run" in about["config"] else {}
    own = {"record.id": about["id"], EDITION: NAMES, **group, **add_prefix("environment", few), **process}
    return {key: word_value(value, MAX_TAG_LENGTH) for key, value in (about["tags"] | own).items()}


def make_result_tags(results: Results) -> dict[str, str]:
    """Return the tags of an evaluation: its headline, and the hash of each headline's protocol."""
    hashes = {
        key: results.tags[key] for name in results.list_headlines() if (key := f"protocol.{name}") in results.tags
    }
    return {HEADLINE: find_headline(results), **hashes} if results.values else dict(results.tags)


def describe(
    client: MlflowClient, experiment: str, run_id: str, about: dict[str, Any], results: Results | None
) -> None:
    """Write the descriptions of run and experiment, and the experiment's view. What a person has written stays."""
    run = client.get_run(run_id)
    if results or NOTE not in run.data.tags:
        for key, value in make_note(describe_run(about, results), run.data.tags).items():
            client.set_tag(run_id, key, value)
    if results is None or not results.values:
        return
    newest: dict[str, Run] = {}
    for each in client.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=200):
        if each.data.tags.get(HEADLINE):
            newest.setdefault(str(each.info.run_name), each)
    rows = [Row(name, each.info.run_id, each.data.tags[HEADLINE]) for name, each in newest.items()]
    tags = client.get_experiment(experiment).tags
    for key, value in ({VIEW_TAG: make_view()} | make_note(describe_experiment(experiment, rows), tags)).items():
        if tags.get(key) != value:
            client.set_experiment_tag(experiment, key, value)


def make_note(text: str, tags: dict[str, str]) -> dict[str, str]:
    """Return the tags that make a text the description of what has these tags; none if a person has written one."""
    before = tags.get(NOTE, "")
    if before and digest(before) != tags.get(NOTE_DIGEST):
        return {}
    return {NOTE: text, NOTE_DIGEST: digest(text)}


def digest(text: str) -> str:
    """Return a hash of a text, 12 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def complete(client: MlflowClient, run: Run, about: dict[str, Any]) -> None:
    """Add what a run lacks of its parameters, config, environment and data sets: its creation may have been cut off."""
    run_id = run.info.run_id
    given = {word_key(key): word_value(value) for key, value in name_parameters(about).items()}
    parameters = [Param(key, value) for key, value in given.items() if key not in run.data.params]
    for index in range(0, len(parameters), 100):
        client.log_batch(run_id, params=parameters[index : index + 100])
    present = {item.path for item in client.list_artifacts(run_id)}
    for name in ("config", "environment"):
        if f"{name}.json" not in present:
            client.log_dict(run_id, about[name], f"{name}.json")
    if not (run.inputs and run.inputs.dataset_inputs):
        client.log_inputs(run_id, [mlflow_files.make_dataset(entry) for entry in about["datasets"]])


def close_stale(client: MlflowClient, experiment: str, run_id: str, name: str) -> None:
    """Set RUNNING runs of this name to KILLED if their process is gone, and link this run to the last of them."""
    quoted = name.replace("'", "")
    query = f"attributes.status = 'RUNNING' and attributes.run_name = '{quoted}'"
    for run in client.search_runs([experiment], query):
        if run.info.run_id == run_id or not is_gone(run.data.tags.get("process", "")):
            continue
        beats = [metric.timestamp for metric in client.get_metric_history(run.info.run_id, HEARTBEAT)]
        client.set_tag(run.info.run_id, "failure", "the process ended without a word")
        client.set_terminated(run.info.run_id, "KILLED", end_time=max(beats, default=run.info.start_time))
        client.set_tag(run_id, "follows", run.data.tags["record.id"])


def add_prefix(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values under `name.key`."""
    return {f"{name}.{key}": value for key, value in values.items()}
