"""Finds or creates the MLflow run of a record, and completes its description: name, tags, parameters, data sets."""

import logging
from typing import Any

from mlflow.entities import LifecycleStage, Param, Run, ViewType
from mlflow.tracking import MlflowClient

from pipeline.history import mlflow_files
from pipeline.history.mlflow_store import MAX_TAG_LENGTH, word_key, word_value
from pipeline.history.record import is_gone

log = logging.getLogger(__name__)
HEARTBEAT = "system/cpu_utilization_percentage"


def find_or_create(client: MlflowClient, experiment: str, about: dict[str, Any]) -> Run:
    """Return the run with the record's id; `about` is the content of run.json.

    A run that was deleted in MLflow is restored with all that it had, such as its model.
    """
    found = client.search_runs([experiment], f"tags.`record.id` = '{about['id']}'", run_view_type=ViewType.ALL)
    active = [run for run in found if run.info.lifecycle_stage == LifecycleStage.ACTIVE]
    if active:
        return active[0]
    if found:
        log.warning("%s: its run was deleted in MLflow; it is restored", about["name"])
        client.restore_run(found[0].info.run_id)
        return client.get_run(found[0].info.run_id)
    return client.create_run(experiment, int(about["started"] * 1000), make_tags(about), about["name"])


def make_tags(about: dict[str, Any]) -> dict[str, str]:
    """Return the tags that a run of this description has."""
    process = {"process": about["process"]} if "process" in about else {}
    tags = {**about["tags"], "record.id": about["id"], **process, **add_prefix("environment", about["environment"])}
    return {key: word_value(value, MAX_TAG_LENGTH) for key, value in tags.items()}


def complete(client: MlflowClient, run: Run, about: dict[str, Any]) -> None:
    """Add what a run lacks of its parameters, config and data sets: its creation may have been cut off."""
    run_id = run.info.run_id
    given = {word_key(key): word_value(value) for key, value in about["parameters"].items()}
    parameters = [Param(key, value) for key, value in given.items() if key not in run.data.params]
    for index in range(0, len(parameters), 100):
        client.log_batch(run_id, params=parameters[index : index + 100])
    if all(item.path != "config.json" for item in client.list_artifacts(run_id)):
        client.log_dict(run_id, about["config"], "config.json")
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
