"""Sends the report, one file about all runs, to MLflow: an artifact report.html of each of these runs."""

import logging
from collections.abc import Iterable
from pathlib import Path

from pipeline import artifacts
from pipeline.history.mlflow_store import connect

log = logging.getLogger(__name__)
NAME = "report.html"
SENT = "mlflow.pipeline.report"  # the tag with the digest of the report that a run has
MAX_BYTES = 64 << 20  # of all copies: the report of hundreds of runs stays a file


def send_report(path: Path, runs: Iterable[str]) -> None:
    """Send a report to the MLflow runs of the records in data/runs, unless they have it. An outage is one warning."""
    records = [record for run in runs if (record := artifacts.RUNS / run / "record" / "run.json").exists()]
    if not records or path.stat().st_size * len(records) > MAX_BYTES:
        return
    digest = artifacts.digest(path)
    try:
        client, experiment = connect()
        for record in records:
            query = f"tags.`record.id` = '{artifacts.read_json(record)['id']}'"
            for run in client.search_runs([experiment], query):
                if run.data.tags.get(SENT) != digest:
                    client.log_text(run.info.run_id, path.read_text(encoding="utf-8"), NAME)
                    client.set_tag(run.info.run_id, SENT, digest)
    except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the report is there
        log.warning("MLflow lacks %s (%s); `pipeline sync` sends it", path, error)
