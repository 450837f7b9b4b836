"""Sends to MLflow what its store does not have of the recorded runs: after an outage, a clone or `dvc pull`.

    pipeline sync                    # every record in data/runs and .state
    pipeline sync gan vae

Runs are found by the id in their record; what is there already is not sent again. Files count as there if they are on
the disk. A run that was deleted in MLflow is restored.
"""

from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.history.mlflow_report import send_report
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record
from pipeline.history.results import Results, read_results


def main(arguments: list[str]) -> int:
    """Send every record; status 1 if the store cannot be reached."""
    parser = make_parser("sync", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs; default: all that have a record")
    options = parser.parse_args(arguments)
    folders = [*sorted(artifacts.RUNS.glob("*/record")), *sorted(artifacts.STATE.glob("train-*/*/record"))]
    records = [Record(folder) for folder in folders if (folder / "run.json").exists()]
    if missing := set(options.runs) - {record.about["name"] for record in records}:
        msg = f"no record of {', '.join(sorted(missing))} in {artifacts.RUNS} or {artifacts.STATE}"
        raise ArtifactError(msg)
    failed, sent = 0, []
    for record in records:
        name = record.about["name"]
        if (options.runs and name not in options.runs) or "ended" not in record.about:  # a training sends by itself
            continue
        results, model = read_run(record)
        is_whole = model is not None or record.about["status"] != "FINISHED"
        lack = "" if is_whole else f"; its model is not in {artifacts.RUNS / name / 'model'}: `dvc pull` brings it"
        mirror = MlflowSync(record)
        mirror.finish(results, model=model)
        failed += mirror.failed
        sent.append(name)
        print(f"{name}: {'not sent' if mirror.failed else 'MLflow run ' + mirror.run_id}{lack}")
    report = artifacts.REPORTS / "index.html"
    if report.exists() and not failed:
        send_report(report, sent)
    return int(failed > 0)


def read_run(record: Record) -> tuple[Results | None, Path | None]:
    """Return a finished run's evaluation and its model, as far as they are there; of an unfinished run nothing."""
    name = record.about["name"]
    if not record.folder.is_relative_to(artifacts.RUNS):
        return None, None
    model = artifacts.RUNS / name / "model"
    metric = record.about["config"].get("run", {}).get("metric", "")
    return read_results(name, metric), model if model.exists() else None
