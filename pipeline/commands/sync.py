"""Sends to MLflow what its store does not have of the recorded runs: after an outage, a clone or `dvc pull`.

    pipeline sync                    # every record in data/runs and .state
    pipeline sync gan vae

Runs are found by the id in their record; what is there already is not sent again.
"""

import argparse

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.record import Record
from pipeline.tracking import Mirror
from pipeline.training import STATE


def main(arguments: list[str]) -> int:
    """Send every record; status 1 if the store cannot be reached."""
    parser = argparse.ArgumentParser(
        prog="pipeline sync", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs; default: all that have a record")
    options = parser.parse_args(arguments)
    folders = [*sorted(artifacts.RUNS.glob("*/record")), *sorted(STATE.glob("train-*/*/record"))]
    records = [Record(folder) for folder in folders if (folder / "run.json").exists()]
    if missing := set(options.runs) - {record.about["name"] for record in records}:
        msg = f"no record of {', '.join(sorted(missing))} in {artifacts.RUNS} or {STATE}"
        raise ArtifactError(msg)
    failed = 0
    for record in records:
        name = record.about["name"]
        if (options.runs and name not in options.runs) or "ended" not in record.about:  # a training sends by itself
            continue
        metrics = artifacts.REPORTS / "runs" / name / "metrics.json"
        finished = record.folder.is_relative_to(artifacts.RUNS) and metrics.exists()
        mirror = Mirror(record)
        model = artifacts.RUNS / name / "model"
        if finished and mirror.is_new and model.exists():
            mirror.log_model(model)
        mirror.close(artifacts.read_json(metrics) if finished else {}, int(record.about["parameters"]["model.steps"]))
        failed += mirror.failed
        print(f"{name}: {'not sent' if mirror.failed else 'MLflow run ' + mirror.run_id}")
    return int(failed > 0)
