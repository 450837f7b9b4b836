"""Sends MLflow the parts of recorded runs that it lacks, after an outage, a clone or `dvc pull`.

    pipeline sync                    # every record in data/runs and .state
    pipeline sync gan vae

Runs are found by the id in their record. What MLflow has already is not sent again; it has a file only if the file is
on the disk. A run that was deleted in MLflow is restored. A record that is broken, or could do harm, is named and left
out.
"""

from pathlib import Path

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.evidence.protocol import ProtocolError
from pipeline.history.finished import is_marked
from pipeline.history.foreign import require_harmless
from pipeline.history.mlflow_report import send_report
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record
from pipeline.history.results import Results, read_results


def main(arguments: list[str]) -> int:
    """Send every record; status 1 if the store cannot be reached."""
    parser = make_parser("sync", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs; default: all that have a record")
    options = parser.parse_args(arguments)
    states = [path for path in artifacts.STATE.glob("train-*/*/record/run.json") if not is_marked(path.parents[1])]
    paths = [*sorted(artifacts.RUNS.glob("*/record/run.json")), *sorted(states)]  # a finished training's is in both
    if not paths:
        params.require_project()
    failed, sent, known = 0, 0, set()
    for path in paths:
        try:
            record = open_record(path.parent)
            known.add(record.about["name"])
            if (options.runs and record.about["name"] not in options.runs) or "ended" not in record.about:
                continue  # a training sends by itself
            is_sent = send(record)
        except (ArtifactError, ProtocolError) as error:  # the other records are sent
            known.add(path.parent.parent.name)
            print(f"not sent: {error}")
            is_sent = False
        failed += not is_sent
        sent += is_sent
    if missing := set(options.runs) - known:
        msg = f"no record of {', '.join(sorted(missing))} in {artifacts.RUNS} or {artifacts.STATE}"
        raise ArtifactError(msg)
    for name in name_absent(known):
        print(f"{name}: no record here; `dvc pull train@{name}` brings it, or `dvc repro train@{name}` makes it")
    if not paths:
        print(f"nothing to send: {artifacts.RUNS} and {artifacts.STATE} have no record of a run. If the project has a")
        print("remote, `dvc pull` brings them (docs/share.md); if it has none, `dvc repro` trains the runs")
        return 0
    report = artifacts.REPORTS / "index.html"
    if report.exists() and not failed:
        send_report(report, sorted(known))
    print(f"{sent} of {sent + failed} runs are in MLflow now; `pipeline ui` shows them")
    return int(failed > 0)


def name_absent(known: set[str]) -> list[str]:
    """List the runs of params.yaml, if there is one, that have no record here."""
    if not params.PATH.exists():
        return []
    runs = params.read_mapping(params.PATH, params.SECTIONS_SAID, params.FOLDER).get("runs") or {}
    return [name for name in runs if name not in known]


def open_record(folder: Path) -> Record:
    """Open a record that may be somebody else's.

    Raises:
        ArtifactError: if it could do harm, or is no record.
    """
    require_harmless(folder)
    return Record(folder)


def send(record: Record) -> bool:
    """Send MLflow what it lacks of a record; say so, and whether nothing is lacking now."""
    name = record.about["name"]
    results, model = read_run(record)
    is_whole = model is not None or record.about["status"] != "FINISHED"
    lack = "" if is_whole else f"; its model is not in {record.folder.with_name('model')}: `dvc pull` brings it"
    mirror = MlflowSync(record)
    mirror.finish(results, model=model)
    print(f"{name}: {'not sent' if mirror.failed else 'MLflow run ' + mirror.run_id}{lack}")
    return not mirror.failed


def read_run(record: Record) -> tuple[Results | None, Path | None]:
    """Return a finished run's evaluation and its model, as far as they are there; of an unfinished run nothing."""
    if not record.folder.is_relative_to(artifacts.RUNS):
        return None, None
    name = record.folder.parent.name  # what a file calls itself is no path
    model = artifacts.RUNS / name / "model"
    metric = record.about["config"].get("run", {}).get("metric", "")
    return read_results(name, metric), model if model.exists() else None
