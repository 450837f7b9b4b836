"""What MLflow shows of a run: groups of names, headlines with intervals, descriptions, a view, a registered model."""

import json
import statistics
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient
from PIL import Image
from scipy import stats

from pipeline import artifacts
from pipeline.history import mlflow_files, mlflow_run
from pipeline.history.mlflow_names import name_configuration, name_parameters, name_quality
from pipeline.history.mlflow_notes import VIEW_TAG, make_page_address, make_view
from pipeline.history.mlflow_report import send_report
from pipeline.history.mlflow_store import connect
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record
from pipeline.history.results import MOST_HEADLINES, Results, list_headlines, read_results
from pipeline.metrics import images, modes, points, text
from tests.history.test_mlflow_sync import ABOUT, runs, walk

SETS = [5.0, 6.0, 8.0]
METRICS = {
    "fid_x": statistics.mean(SETS),
    "fid_x_floor": 3.0,
    "fid_x_reliable": 1.0,
    "kid_x": 0.5,
    "iw5_nats": 100.0,
    "iw5_nats_se": 0.5,
    "samples": 1000.0,
}
RESULTS = Results(METRICS, {"fid_x": SETS}, images.VALUES, {"protocol.fid_x": "abc", "protocol.kid_x": "def"})
RUN = {"model": "gan", "data": "digits", "metric": "m", "network": "none", "seed": 0, "start": "none", "changes": {}}


def make_about(**run: Any) -> dict[str, Any]:
    """A record of a run with a config, as the stage train writes it."""
    about = deepcopy(ABOUT)
    about["config"] = {"run": RUN | run, "model": {"steps": 6400}}
    about["parameters"] = {
        "data.path": "data/own",
        "data.source": "mnist",
        "model.augment": [],
        "model.loss": "hinge",
        **{f"run.{key}": value for key, value in (RUN | run).items() if key != "changes"},
    }
    return about


def test_headlines_their_intervals_and_the_rest_are_groups_of_their_own() -> None:
    low, high = stats.t.interval(0.95, 2, statistics.mean(SETS), statistics.stdev(SETS) / 3**0.5)
    expected = {
        "quality/fid_x": statistics.mean(SETS),
        "quality/iw5_nats": 100.0,
        "quality/intervals/fid_x_low": low,
        "quality/intervals/fid_x_high": high,
        "quality/intervals/fid_x_floor": 3.0,
        "quality/intervals/iw5_nats_low": 100 - 1.96 * 0.5,
        "quality/intervals/iw5_nats_high": 100 + 1.96 * 0.5,
        **{f"quality/more/{name}": METRICS[name] for name in ("fid_x_reliable", "kid_x", "iw5_nats_se", "samples")},
    }
    assert name_quality(RESULTS) == pytest.approx(expected)


@pytest.mark.parametrize("module", [images, modes, points, text])
def test_dvc_shows_at_most_eight_numbers_of_a_run_and_each_is_a_measurement(module: Any) -> None:
    names = {template.format(network="x", samples=5, split="test"): 1.0 for template in module.VALUES}
    names |= {template.format(network="y", samples=5, split="validation"): 1.0 for template in module.VALUES}
    found = list_headlines(module.VALUES, names)
    assert 0 < len(found) <= MOST_HEADLINES == 8
    assert not {name for name in found if name.endswith(("_floor", "_se", "_reliable")) or name == "samples"}


def test_parameters_begin_with_what_a_run_changes_and_leave_out_what_says_nothing() -> None:
    found = name_parameters(make_about(changes={"r1": 0.1, "loss": "hinge"}, seed=3))
    assert min(found) == "changes"
    assert found["changes"] == "loss=hinge, r1=0.1"
    assert (found["model"], found["seed"], found["model.loss"]) == ("gan", 3, "hinge")
    assert not {"data.path", "model.augment", "start", "network"} & found.keys()
    own = make_about()
    own["parameters"]["data.source"] = "image_folder"
    assert name_parameters(own)["data.path"] == "data/own"


def test_runs_have_one_configuration_if_and_only_if_they_differ_in_the_seed() -> None:
    config = make_about()["config"]
    name = name_configuration(config)
    assert name.startswith("gan on digits (")
    assert name_configuration({**config, "run": {**RUN, "seed": 7}}) == name
    others = [{**config, "run": {**RUN, key: "other"}} for key in ("model", "data", "metric", "network", "start")]
    others += [{**config, "run": {**RUN, "changes": {"loss": "hinge"}}}, {**config, "model": {"steps": 1}}]
    assert len({name, *map(name_configuration, others)}) == len(others) + 1
    assert name_configuration(others[-2]).startswith("gan on digits, loss=hinge (")


def test_the_view_has_the_form_of_mlflows_saved_views_and_no_address_misses_it() -> None:
    view = json.loads(make_view())
    assert (type(view["name"]), type(view["createdAt"]), type(view["state"])) == (str, int, str)
    sections = json.loads(view["state"])["compareRunSections"]
    assert [section["name"] for section in sections][:4] == ["quality", "pictures", "train", "cost"]
    known = {section["uuid"] for section in sections}
    assert {chart["metricSectionId"] for chart in json.loads(view["state"])["compareRunCharts"]} <= known
    assert VIEW_TAG.rpartition(".")[2] in make_page_address("1")


@pytest.fixture
def evaluated(workdir: Path) -> Record:
    """A finished run whose evaluation has a picture, texts and numbers."""
    record = Record(artifacts.RUNS / "gan" / "record", make_about(metric="images") | {"name": "gan"})
    record.about["environment"] |= {"numpy": "2"}
    record.log(1, {"loss": 1.0})
    record.finish("FINISHED", kept_parameters=5)
    folder = workdir / artifacts.REPORTS / "runs" / "gan"
    artifacts.write_json(folder / "metrics.json", METRICS)
    artifacts.write_json(folder / "sets.json", {"fid_x": SETS})
    (folder / "samples").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "samples" / "samples.png")
    (folder / "samples" / "poem.yaml").write_text("- |2-\n\n  to be\n- or not\n")
    return record


def test_a_run_shows_its_evaluation_in_words_files_pictures_and_a_table(evaluated: Record) -> None:
    for _ in range(2):
        MlflowSync(evaluated).finish(read_results("gan", "images"))
    (run,) = runs()
    client = MlflowClient()
    tags = run.data.tags
    assert tags["headline"] == "fid_x 6.333 (2.539 to 10.13), floor 3"
    assert "| `fid_x` | 6.333 (2.539 to 10.13), floor 3 | lower |" in tags["mlflow.note.content"]
    assert 'load_model("models:/gan@latest")' in tags["mlflow.note.content"]
    assert {key for key in tags if not key.startswith("mlflow.")} == {
        *("configuration", "dvc.stage", "environment.torch", "headline", "record.id")
    }
    paths = [item.path for item in walk(client, run.info.run_id)]
    expected = {"config.json", "environment.json", "poem.json", "samples/samples.png", "samples/poem.yaml"}
    assert {*expected, "evaluation/metrics.json", "evaluation/sets.json"} <= {*paths}
    drawn = [path for path in paths if path.startswith("images/") and path.endswith(".png")]
    assert [path.partition("+timestamp")[0] for path in drawn] == ["images/pictures~samples+step+0"]  # sent once
    table = client.load_table(run.info.experiment_id, "poem.json", [run.info.run_id])
    assert list(table["sample"]) == ["\nto be", "or not"]
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "poem.json", "type": "table"}]
    note = client.get_experiment(run.info.experiment_id).tags["mlflow.note.content"]
    assert note.startswith("**gan** fid_x 6.333 (2.539 to 10.13)")
    assert f"runs/{run.info.run_id}?workflowType=machine_learning" in note


def test_numbers_of_a_metric_that_is_gone_are_shown_without_headlines(evaluated: Record) -> None:
    MlflowSync(evaluated).finish(read_results("gan", "gone"))
    (run,) = runs()
    assert run.data.metrics["quality/kid_x"] == 0.5
    assert "headline" not in run.data.tags


def test_what_a_person_wrote_stays(evaluated: Record) -> None:
    MlflowSync(evaluated).finish(read_results("gan", "images"))
    client, experiment = connect()
    (run,) = runs()
    client.set_tag(run.info.run_id, "mlflow.note.content", "my own words")
    client.set_experiment_tag(experiment, "mlflow.note.content", "of the experiment")
    MlflowSync(evaluated).finish(Results(METRICS, {}, images.VALUES))
    assert runs()[0].data.tags["mlflow.note.content"] == "my own words"
    assert client.get_experiment(experiment).tags["mlflow.note.content"] == "of the experiment"
    assert runs()[0].data.tags["headline"] == "fid_x 6.333, floor 3"


def test_a_run_with_names_of_an_older_version_goes_to_the_trash_and_a_new_one_has_everything(
    evaluated: Record, caplog: pytest.LogCaptureFixture
) -> None:
    client, experiment = connect()
    old = client.create_run(experiment, tags={"record.id": evaluated.about["id"]}).info.run_id
    client.log_metric(old, "loss", 1.0, step=1)
    for _ in range(2):
        MlflowSync(evaluated).finish()
    (run,) = runs()
    assert run.info.run_id != old
    assert run.data.metrics["train/loss"] == 1
    found = client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)
    assert [each.info.run_id for each in found] == [old]
    assert caplog.text.count("names of an older version") == 1
    client.delete_run(run.info.run_id)
    MlflowSync(evaluated).finish()
    assert [each.info.run_id for each in runs()] == [run.info.run_id]  # and not the old one


def test_the_report_is_an_artifact_of_its_runs_and_an_outage_stops_nothing(
    evaluated: Record, caplog: pytest.LogCaptureFixture
) -> None:
    MlflowSync(evaluated).finish()
    report = artifacts.REPORTS / "index.html"
    report.write_text("<p>all runs</p>")
    send_report(report, ["gan", "never trained"])
    client, _ = connect()
    place = client.download_artifacts(runs()[0].info.run_id, "report.html")
    assert Path(place).read_text() == "<p>all runs</p>"
    (Path("mlflow.db")).write_bytes(b"no database" * 1000)
    send_report(report, ["gan"])
    assert "`pipeline sync` sends it" in caplog.text


def test_each_model_is_registered_once_under_the_name_of_its_run(evaluated: Record) -> None:
    client, experiment = connect()
    MlflowSync(evaluated).send()
    (run,) = runs()
    for name in ("first", "second"):
        client.create_logged_model(experiment, name, source_run_id=run.info.run_id)
        for _ in range(2):
            mlflow_files.register_model(client, experiment, run.info.run_id, "gan")
    found = client.search_model_versions("name = 'gan'")
    assert sorted(int(each.version) for each in found) == [1, 2]
    assert int(client.get_model_version_by_alias("gan", "latest").version) == 2


def test_a_note_is_ours_only_as_long_as_nobody_edits_it() -> None:
    tags = mlflow_run.make_note("first", {})
    assert mlflow_run.make_note("second", tags)["mlflow.note.content"] == "second"
    assert mlflow_run.make_note("second", tags | {"mlflow.note.content": "edited"}) == {}
