"""`pipeline readme`: the README's figures are those of the committed files, and a difference is found."""

import shutil
from pathlib import Path

import pytest

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import readme
from pipeline.evidence.protocol import ProtocolError
from pipeline.evidence.uncertainty import format_number
from tests.conftest import ROOT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The committed files that the figures come from."""
    for name in ("README.md", "params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("reports", "benchmarks"):
        ignored = shutil.ignore_patterns("index.html", "curves", "data", "pipeline", "*.png", ".dvc")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("project")
def test_the_committed_readme_says_what_the_committed_files_say() -> None:
    assert readme.main(["--check"]) == 0


def test_a_figure_that_was_typed_by_hand_is_found_and_replaced(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "README.md"
    text = path.read_text(encoding="utf-8")
    fid = format_number(artifacts.read_json(project / "reports" / "runs" / "gan" / "metrics.json")["fid_classifier"])
    path.write_text(text.replace(f"| {fid} |", "| 0.1 |"), encoding="utf-8")
    assert readme.main(["--check"]) == 1
    assert "run `pipeline readme`" in capsys.readouterr().err
    assert readme.main([]) == 0
    assert path.read_text(encoding="utf-8") == text


def test_a_reproduction_is_shown_by_its_totals_and_opened_for_its_claims() -> None:
    report = "`pipeline reproduce` of commit abc:\n\n| run |\n|---|\n| gan |\n\na note\n\n1 claims: 1 bit for bit\n"
    text = readme.fold(report)
    assert text.splitlines()[0] == "`pipeline reproduce` of commit abc: **1 claims: 1 bit for bit**."
    folded = text.partition("</summary>")[2].partition("</details>")[0]
    assert folded.strip() == "| run |\n|---|\n| gan |\n\na note"


@pytest.mark.usefixtures("project")
def test_costs_come_from_the_records_and_the_stages_notes() -> None:
    totals = {"seconds": 12.0, "cpu_seconds": 20.0, "peak_memory_mib": 512.0, "kept_parameters": 7}
    environment = {"processor": "a processor", "threads": "2", "torch": "2"}
    artifacts.write_json(artifacts.RUNS / "gan" / "record" / "run.json", {"totals": totals, "environment": environment})
    for stage, seconds in (("train@gan", 90.0), ("report", 30.0)):
        artifacts.write_json(
            Path("data/costs") / f"{stage}.json", {"seconds": seconds, "peak_memory_mib": 10 * seconds}
        )
    before = artifacts.read_json(readme.COSTS)["runs"]["vae"]
    readme.gather_costs(params.load())
    known = artifacts.read_json(readme.COSTS)
    assert known["runs"]["gan"] == totals | {"processor": "a processor", "threads": "2"}
    assert known["runs"]["vae"] == before  # not in this folder: as it was
    stages = {name: known["stages"][name] for name in ("train@gan", "report")}
    sentence = readme.render_costs({"runs": known["runs"], "stages": stages})
    assert sentence == "The 2 stages took 2.0 minutes and at most 0.9 GiB of memory on 2 threads of an a processor.\n"


def test_a_readme_without_a_block_is_refused_by_the_blocks_name() -> None:
    with pytest.raises(ArtifactError, match="expected one block <!-- results -->"):
        readme.fill("# A title\n", {"results": "x\n"})
    assert readme.fill("a\n<!-- x -->\nold\n<!-- end of x -->\nb", {"x": "new\n"}) == (
        "a\n<!-- x -->\nnew\n<!-- end of x -->\nb"
    )


@pytest.mark.usefixtures("project")
def test_costs_of_stages_that_are_no_more_go() -> None:
    before = artifacts.read_json(readme.COSTS)
    cost = {"seconds": 1.0, "peak_memory_mib": 1.0}
    gone = ("train@former", "fetch@gan", "former")  # a former run, data of a run's name, a former stage
    artifacts.write_json(readme.COSTS, before | {"stages": before["stages"] | dict.fromkeys(gone, cost)})
    artifacts.write_json(Path("data/costs/evaluate@former.json"), cost)
    readme.gather_costs(params.load())
    assert artifacts.read_json(readme.COSTS) == before


def test_augmentations_of_different_protocols_stand_in_no_table(project: Path) -> None:
    folder = project / "benchmarks" / "reports" / "runs"
    assert "| plain |" in readme.render_policies(folder)
    path = folder / "augment_plain_1" / "protocol.json"
    about = artifacts.read_json(path)
    about["protocol"]["metric"]["neighbours"] += 1
    artifacts.write_json(path, about)
    with pytest.raises(ProtocolError, match=r"augment_plain_1 .*: metric\.neighbours is"):
        readme.render_policies(folder)


@pytest.mark.usefixtures("project")
def test_a_training_stands_beside_its_seed_and_protocol() -> None:
    text = readme.render_results(params.load().runs, artifacts.read_json(readme.COSTS)["runs"])
    for run in ("gan", "vae", "transformer"):
        about = artifacts.read_json(artifacts.REPORTS / "runs" / run / "protocol.json")
        assert f"| {run} | training, seed {about['run']['seed']}, protocol `{about['hash']}` |" in text
