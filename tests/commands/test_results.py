"""`pipeline results`: a claim is the mean over its runs, which differ in nothing but the seed."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.__main__ import main

CLAIM = """
speed:
  title: how fast
  runs: [one, two]
  metric: nats
  lower_is_better: true
  must: 2.0
  aim: 1.0
  source: nowhere
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two evaluated runs of different seeds, and a claim on them."""
    monkeypatch.chdir(tmp_path)
    Path("results.yaml").write_text(CLAIM, encoding="utf-8")
    for seed, name in enumerate(("one", "two")):
        protocol = {"hash": "h", "protocol": {"metric": "text"}, "run": {"seed": seed, "model": "m"}}
        write(name, {"nats": 1.0 + seed, "test_targets": 99}, protocol, seconds=10.0 * (seed + 1))
    return tmp_path


def write(name: str, metrics: dict[str, float], protocol: dict[str, Any], seconds: float) -> None:
    folder = artifacts.REPORTS / "runs" / name
    artifacts.write_json(folder / "metrics.json", metrics)
    artifacts.write_json(folder / "sets.json", {})
    artifacts.write_json(folder / "protocol.json", protocol)
    totals = {"seconds": seconds, "cpu_seconds": 2 * seconds, "peak_memory_mib": 100.0}
    about = {"totals": totals, "environment": {"processor": "p", "threads": "2"}, "tags": {}}
    artifacts.write_json(artifacts.RUNS / name / "record" / "run.json", about)


@pytest.mark.usefixtures("runs")
def test_a_claim_has_mean_interval_seeds_and_the_largest_costs() -> None:
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))["speed"]
    assert found["value"] == 1.5
    # Student's t with one degree of freedom is 12.706; the standard error of 1 and 2 is one half
    assert found["interval"] == pytest.approx([1.5 - 12.7062 / 2, 1.5 + 12.7062 / 2], rel=1e-5)
    assert (found["seeds"], found["counts"], found["training_seconds"]) == ([0, 1], {"test_targets": 99}, 20)
    assert found["reached"]
    assert Path("results.md").read_text(encoding="utf-8").splitlines()[2] == (
        "| how fast (`speed`) | **1.5** | -4.853 to 7.853 | 2 | 2 | 1 | 20 s | 100 MiB |"
    )


@pytest.mark.usefixtures("runs")
def test_runs_that_differ_in_more_than_the_seed_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    protocol = {"hash": "h", "protocol": {"metric": "text"}, "run": {"seed": 1, "model": "another"}}
    write("two", {"nats": 1.0, "test_targets": 99}, protocol, seconds=1.0)
    assert main(["results"]) == 1
    assert "model is 'm' and 'another'" in capsys.readouterr().err


@pytest.mark.usefixtures("runs")
def test_an_optional_claim_without_its_runs_is_not_measured_here(capsys: pytest.CaptureFixture[str]) -> None:
    absent = CLAIM.replace("speed:", "else:").replace("[one, two]", "[three, four]")
    Path("results.yaml").write_text(CLAIM + absent + "  optional: true\n", encoding="utf-8")
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))
    assert found["speed"]["value"] == 1.5
    assert (found["else"]["value"], found["else"]["command"]) == (None, "dvc repro evaluate@three evaluate@four")
    assert Path("results.md").read_text(encoding="utf-8").splitlines()[3] == (
        "| how fast (`else`) | not measured here | | | 2 | 1 | | |"
    )
    partly = absent.replace("three", "one") + "  optional: true\n"
    for refused in (absent, partly):  # not optional; one of two runs
        Path("results.yaml").write_text(refused, encoding="utf-8")
        assert main(["results"]) == 1
        assert re.search("(three|four)/metrics.json: not found", capsys.readouterr().err)


@pytest.mark.usefixtures("runs")
def test_results_that_a_merge_broke_are_refused_and_stay(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("results.json")
    path.write_text("<<<<<<< ours\n{}\n", encoding="utf-8")
    assert main(["results"]) == 1
    assert "results.json: no JSON" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8").startswith("<<<<<<<")


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("value", [1.0, 0.0])
def test_costs_stay_where_the_records_are_gone_and_the_value_is_the_same(
    value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        artifacts.write_json(artifacts.REPORTS / "runs" / name / "metrics.json", {"nats": value, "test_targets": 99})
    assert main(["results"]) == 0
    before = artifacts.read_json(Path("results.json"))
    (artifacts.RUNS / "two" / "record" / "run.json").unlink()  # as in a fresh clone
    assert main(["results"]) == 0
    assert artifacts.read_json(Path("results.json")) == before
    artifacts.write_json(artifacts.REPORTS / "runs" / "two" / "metrics.json", {"nats": 3.0, "test_targets": 99})
    assert main(["results"]) == 1
    assert "two/record/run.json: not found" in capsys.readouterr().err
    assert artifacts.read_json(Path("results.json")) == before


@pytest.mark.usefixtures("runs")
def test_the_ratios_of_speed_are_results_too() -> None:
    row = {"name": "a_over_b", "title": "t", "ratio": 1.1, "low": 1.0, "high": 1.2, "repeats": 5, "wanted": "<= 2"}
    row |= {"detail": "d", "processor": "p", "threads": "2", "torch": "t"}
    artifacts.write_json(Path("speed.json"), {"rows": {"a_over_b": row}})
    assert main(["results"]) == 0
    assert artifacts.read_json(Path("results.json"))["a_over_b"] == {
        "value": 1.1,
        "interval": [1.0, 1.2],
        "repeats": 5,
        "detail": "d",
        "wanted": "<= 2",
        "command": "python speed.py",
        "processor": "p",
        "threads": "2",
    }
    assert "a_over_b" not in Path("results.md").read_text(encoding="utf-8")  # speed.md shows them


def test_it_says_where_it_must_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["results"]) == 1
    assert "results.yaml: not found; run from benchmarks/" in capsys.readouterr().err
