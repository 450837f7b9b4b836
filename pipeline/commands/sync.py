"""Sends to MLflow what its store does not have of the recorded runs: after an outage, a clone or `dvc pull`.

    pipeline sync                    # every record in data/runs and .state
    pipeline sync gan vae

Runs are found by the id in their record; what is there already is not sent again. Files count as there if they are on
the disk. A run that was deleted in MLflow is restored. A record that is
broken, or could do harm, is named and left out.
"""

from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.evidence.protocol import ProtocolError, check_content, make_tags
from pipeline.history.foreign import require_harmless
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record


def main(arguments: list[str]) -> int:
    """Send every record; status 1 if the store cannot be reached."""
    parser = make_parser("sync", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs; default: all that have a record")
    options = parser.parse_args(arguments)
    paths = [*artifacts.RUNS.glob("*/record/run.json"), *artifacts.STATE.glob("train-*/*/record/run.json")]
    failed, known = 0, set()
    for path in sorted(paths, key=lambda path: (path.is_relative_to(artifacts.STATE), path)):
        try:
            record, sent = open_record(path.parent), True
            known.add(record.about["name"])
            if not options.runs or record.about["name"] in options.runs:
                sent = send(record)
        except (ArtifactError, ProtocolError) as error:  # the other records are sent
            known.add(path.parent.parent.name)
            print(f"not sent: {error}")
            sent = False
        failed += not sent
    if missing := set(options.runs) - known:
        msg = f"no record of {', '.join(sorted(missing))} in {artifacts.RUNS} or {artifacts.STATE}"
        raise ArtifactError(msg)
    return int(failed > 0)


def open_record(folder: Path) -> Record:
    """Open a record that may be somebody else's.

    Raises:
        ArtifactError: if it could do harm, or is no record.
    """
    require_harmless(folder)
    return Record(folder)


def send(record: Record) -> bool:
    """Send MLflow what it lacks of a record; say so, and whether nothing is lacking now."""
    if "ended" not in record.about:  # a training sends by itself
        return True
    name = record.about["name"]
    values, tags, model = read_results(record)
    is_whole = model is not None or record.about["status"] != "FINISHED"
    lack = "" if is_whole else f"; its model is not in {record.folder.with_name('model')}: `dvc pull` brings it"
    mirror = MlflowSync(record)
    mirror.finish(values, int(record.about["parameters"]["model.steps"]), tags=tags, model=model)
    print(f"{name}: {'not sent' if mirror.failed else 'MLflow run ' + mirror.run_id}{lack}")
    return not mirror.failed


def read_results(record: Record) -> tuple[dict[str, float], dict[str, str], Path | None]:
    """Return a finished run's evaluation, the tags that go with it, and its model; of an unfinished run nothing."""
    if not record.folder.is_relative_to(artifacts.RUNS):
        return {}, {}, None
    name = record.folder.parent.name  # what a file calls itself is no path
    model, reports = artifacts.RUNS / name / "model", artifacts.REPORTS / "runs" / name
    metrics, protocol = reports / "metrics.json", reports / "protocol.json"
    values = artifacts.read_json(metrics) if metrics.exists() else {}
    tags = make_tags(check_content(artifacts.read_json(protocol), str(protocol))) if protocol.exists() else {}
    return values, tags, model if model.exists() else None
