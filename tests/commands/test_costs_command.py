"""`pipeline costs`: costs noted here replace the committed ones, and those of former runs and stages go."""

import shutil
from pathlib import Path

import pytest

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import costs as command
from pipeline.history.costs import FOLDER
from tests.conftest import ROOT, squeeze


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The committed costs, and the files that name runs and stages."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "reports").mkdir()
    shutil.copy(ROOT / command.PATH, tmp_path / command.PATH)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("project")
def test_costs_come_from_the_records_and_the_stages_notes() -> None:
    committed = command.gather(params.load())
    totals = {"seconds": 12.0, "cpu_seconds": 20.0, "peak_memory_mib": 512.0, "kept_parameters": 7}
    machine = {"processor": "a processor", "threads": "2"}
    record = {"totals": totals, "environment": machine | {"torch": "2"}}
    artifacts.write_json(artifacts.RUNS / "gan" / "record" / "run.json", record)
    noted = {"train@gan": {"seconds": 90.0, "peak_memory_mib": 900.0}, "report": {"seconds": 30, "peak_memory_mib": 3}}
    for stage, cost in noted.items():
        artifacts.write_json(FOLDER / f"{stage}.json", cost)
    assert command.main(["--save"]) == 0
    saved = artifacts.read_json(command.PATH)
    assert saved["runs"]["gan"] == totals | machine
    assert saved["runs"]["vae"] == committed["runs"]["vae"]  # did not run here
    assert saved["stages"] == committed["stages"] | noted


def test_the_table_has_the_most_expensive_stage_first_and_the_total_last() -> None:
    stages = {
        "report": {"seconds": 30.0, "peak_memory_mib": 300.0},
        "train@gan": {"seconds": 90, "peak_memory_mib": 922},
    }
    assert squeeze(command.render(stages)).splitlines() == [
        "| stage | seconds | memory, MiB |",
        "|---|---:|---:|",
        "| train@gan | 90 | 922 |",
        "| report | 30 | 300 |",
        "",
        "2 stages took 2.0 minutes and at most 0.9 GiB of memory.",
    ]


@pytest.mark.usefixtures("project")
def test_costs_of_runs_and_stages_that_are_no_longer_there_are_left_out() -> None:
    committed = command.gather(params.load())
    cost = {"seconds": 1.0, "peak_memory_mib": 1.0}
    gone = ("train@former", "fetch@gan", "former")  # a former run, a data set with a run's name, a former stage
    stages = committed["stages"] | dict.fromkeys(gone, cost)
    runs = committed["runs"] | {"former": committed["runs"]["gan"]}
    artifacts.write_json(command.PATH, {"stages": stages, "runs": runs})
    artifacts.write_json(FOLDER / "evaluate@former.json", cost)
    assert command.gather(params.load()) == committed


def test_a_project_in_which_nothing_ran_has_no_costs(project: Path) -> None:
    (project / command.PATH).unlink()
    with pytest.raises(ArtifactError, match="no stage has noted its cost"):
        command.main([])
    assert not (project / command.PATH).exists()
