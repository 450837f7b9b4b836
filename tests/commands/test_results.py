"""`pipeline results`: a claim is the mean over its runs, which differ in nothing but the seed."""

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts, params
from pipeline.__main__ import main
from pipeline.commands import reproduce, results
from pipeline.evidence import trainings
from pipeline.metrics import images, text
from tests import forks
from tests.commands.test_compare import write as write_images
from tests.conftest import ROOT

CLAIM = """
speed:
  title: how fast
  runs: [one, two]
  metric: test_nats
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
        metrics = {"test_nats": 1.0 + seed, "test_targets": 99}
        write(name, metrics, make_content({"seed": seed, "model": "m"}), seconds=10.0 * (seed + 1))
    return tmp_path


def make_content(run: dict[str, Any], **scores: Any) -> dict[str, Any]:
    protocol = {
        "metric": {"name": "text"},
        "scores": {"of": "tokens", **scores},
        "versions": {"torch": f"{run['seed']}"},
    }
    return {"protocol": protocol, "run": run, "values": {"test_nats": {"fields": ["scores"], "hash": "h"}}}


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
    assert (found["interval"], found["no_interval"]) == (None, "2 seeds: too few for an interval; 3 are needed")
    assert (found["seeds"], found["counts"], found["training_seconds"]) == ([0, 1], {"test_targets": 99}, 20)
    assert (found["verdict"], found["command"]) == (
        "reached",  # by both seeds: 1.0 and 2.0, which must be at most 2.0
        "OMP_NUM_THREADS=2 dvc repro evaluate@one evaluate@two",
    )
    lines = Path("results.md").read_text(encoding="utf-8").splitlines()
    assert lines[2] == (
        "| how fast (`speed`) | **1.5** | (2 seeds: too few for an interval; 3 are needed) | 2 | 99 targets | 2 | 1 "
        "| 20 s | 40 s | 100 MiB | `h` |"
    )
    assert {line.count("|") for line in lines} == {12}


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("third", "interval", "cell", "verdict"),
    [
        # Student's t with two degrees of freedom is 4.3027; the standard error of 1, 2 and 3 is 1 / sqrt(3)
        (3.0, [2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5], "[-0.4841, 4.484]", "inconclusive"),
        (None, None, "(all 3 seeds equal)", "reached"),
    ],
)
def test_three_seeds_have_an_interval_unless_all_are_equal(
    third: float | None, interval: list[float] | None, cell: str, verdict: str
) -> None:
    for seed, name in enumerate(("one", "two", "three")):
        content = make_content({"seed": seed, "model": "m"})
        write(name, {"test_nats": 1.0 + seed if third else 2.0, "test_targets": 99}, content, seconds=1.0)
    Path("results.yaml").write_text(CLAIM.replace("[one, two]", "[one, two, three]"), encoding="utf-8")
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))["speed"]
    assert found["interval"] == (interval and pytest.approx(interval, rel=1e-5))
    assert (found["value"], found["verdict"]) == (2.0, verdict)
    assert f"| {cell} | 3 |" in Path("results.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("runs")
def test_sets_of_samples_of_one_training_give_no_interval() -> None:
    artifacts.write_json(artifacts.REPORTS / "runs" / "one" / "sets.json", {"test_nats": [1.0, 1.1, 0.9]})
    Path("results.yaml").write_text(CLAIM.replace("[one, two]", "[one]"), encoding="utf-8")
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))["speed"]
    assert (found["interval"], found["no_interval"]) == (None, "1 seed: too few for an interval; 3 are needed")


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(("by", "values"), [("difference", [0.5, 1.0, 1.5]), ("ratio", [2.0, 2.0, 2.0])])
def test_a_comparison_is_made_seed_by_seed(by: str, values: list[float]) -> None:
    write("three", {"test_nats": 3.0, "test_targets": 99}, make_content({"seed": 2, "model": "m"}), seconds=1)
    for seed, name in enumerate(("a", "b", "c")):
        metrics = {"test_nats": (1.0 + seed) / 2, "test_targets": 99}
        write(name, metrics, make_content({"seed": seed, "model": "other"}), seconds=90.0)
    claim = CLAIM.replace("[one, two]", "[one, two, three]").replace("lower_is_better: true", "lower_is_better: false")
    extra = f"  against: [a, b, c]\n  by: {by}\n"
    Path("results.yaml").write_text(claim + extra, encoding="utf-8")
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))["speed"]
    assert found["value"] == pytest.approx(sum(values) / 3)
    half = 4.30265 * 0.5 / 3**0.5  # Student's t, and the standard error of 0.5, 1.0 and 1.5
    expected = [1.0 - half, 1.0 + half] if by == "difference" else None
    assert found["interval"] == (pytest.approx(expected, rel=1e-4) if expected else None)
    assert found["training_seconds"] == 90
    Path("results.yaml").write_text(claim + extra.replace("[a, b, c]", "[b, a, c]"), encoding="utf-8")
    assert main(["results"]) == 1


@pytest.mark.parametrize(
    ("value", "size", "bound"),
    [
        *((2.0, 4000, ""), (1.0, 16_000, ""), (3.0, 2000, ""), (1.5, 8000, "")),
        *((0.9, 16_000, "more than"), (4.5, 1000, "at most"), (4.0, 1000, "at most")),
    ],
)
def test_a_curve_that_falls_by_one_with_each_doubling_is_read_exactly(value: float, size: int, bound: str) -> None:
    curve = [(1000, 4.0), (4000, 2.0), (16_000, 1.0)]  # by two in two doublings, then by one
    assert results.find_size(curve, value) == (pytest.approx(size), bound)


@pytest.mark.parametrize(
    ("curve", "value"),
    [
        ([(1000, 4.0), (4000, 4.0)], 3.0),
        ([(1000, 4.0), (4000, 5.0)], 3.0),
        ([(4000, 4.0), (1000, 2.0)], 3.0),
    ],
)
def test_a_curve_without_an_answer_is_refused(curve: list[tuple[int, float]], value: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        results.find_size(curve, value)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("nats", "must", "value", "cell", "verdict"),
    [
        ([1.5, 1.5, 1.5], 7.0, 8.0, "| **8** | (all 3 seeds equal) | 3 |", "reached"),
        ([1.5, 1.5, 0.5], 7.0, 32 / 3, "| **more than 10.67** | (bounds have no interval) | 3 |", "reached"),
        (
            [0.5, 0.5, 0.5],
            17.0,
            16.0,
            "| more than 16 (inconclusive) | (bounds have no interval) | 3 |",
            "inconclusive",
        ),
        ([5.0, 5.0, 4.5], 2.0, 1.0, "| at most 1 (missed) | (bounds have no interval) | 3 |", "missed"),
        ([5.0, 1.5, 1.5], 1.0, 17 / 3, "| at most 5.667 (inconclusive) | (bounds have no interval) |", "inconclusive"),
        ([5.0, 0.5, 1.5], 9.0, 25 / 3, "| roughly 8.333 (inconclusive) | (bounds have no interval) |", "inconclusive"),
        ([1.5, 1.5, 1.5], 9.0, 8.0, "| 8 (missed) | (all 3 seeds equal) | 3 |", "missed"),
    ],
)
def test_a_multiplier_is_of_the_data_that_runs_from_scratch_need(
    nats: list[float], must: float, value: float, cell: str, verdict: str, edit_params: Callable[..., None]
) -> None:
    seeds = ("0", "1", "2")
    known: dict[str, Any] = {}
    for name, limit, scores in (
        ("few", 1000, nats), ("s1", 1000, [4.0] * 3), ("s4", 4000, [2.0] * 3), ("s16", 16_000, [1.0] * 3)
    ):  # fmt: skip
        for seed, score in zip(seeds, scores, strict=True):
            content = make_content({"seed": int(seed), "model": name})
            write(f"{name}_{seed}", {"test_nats": score, "test_targets": 99}, content, seconds=1)
            known[f"{name}_{seed}"] = limit
    edit_params({})  # a params.yaml
    settings = params.load()
    text_data, run = artifacts.encode(settings.data["text"]), artifacts.encode(settings.runs["transformer"])
    edit_params({f"data.text_{limit}": text_data | {"train_limit": limit} for limit in set(known.values())})
    edit_params({f"runs.{name}": run | {"data": f"text_{n}", "seed": int(name[-1])} for name, n in known.items()})
    against = ", ".join(f"{name}_{seed}" for name in ("s1", "s4", "s16") for seed in seeds)
    claim = CLAIM.replace("[one, two]", "[few_0, few_1, few_2]").replace("_better: true", "_better: false")
    claim = claim.replace("must: 2.0", f"must: {must}") + f"  against: [{against}]\n  by: multiplier\n"
    Path("results.yaml").write_text(claim, encoding="utf-8")
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))["speed"]
    assert found["value"] == pytest.approx(value)
    assert (found["interval"], found["verdict"]) == (None, verdict)
    assert cell in Path("results.md").read_text(encoding="utf-8")
    Path("results.yaml").write_text(claim.replace("_better: false", "_better: true"), encoding="utf-8")
    assert main(["results"]) == 1
    Path("results.yaml").write_text(claim.replace("s1_0, s1_1, s1_2, s4_0", "s4_0"), encoding="utf-8")
    assert main(["results"]) == 0  # two sizes are enough


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(("must", "verdict"), [(2.5, "reached"), (1.5, "inconclusive"), (0.5, "missed")])
def test_without_an_interval_each_seed_counts(must: float, verdict: str) -> None:
    Path("results.yaml").write_text(CLAIM.replace("must: 2.0", f"must: {must}"), encoding="utf-8")
    assert main(["results"]) == 0
    assert artifacts.read_json(Path("results.json"))["speed"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("ends", "lower", "verdict"),
    [
        ([1.9, 2.0], True, "reached"),
        ([2.0, 2.1], True, "inconclusive"),
        ([2.1, 2.2], True, "missed"),
        ([2.0, 2.1], False, "reached"),
        ([1.9, 2.1], False, "inconclusive"),
        ([1.8, 1.9], False, "missed"),
        ([2.0, 2.0], True, "reached"),
        ([2.0, 2.0000000000000004], True, "reached"),  # no width, but for rounding
        ([1.9999999999999998, 2.0], False, "reached"),
        ([1.9], True, "reached"),
        ([1.9], False, "missed"),
    ],
)
def test_the_interval_decides_or_without_one_the_value(ends: list[float], lower: bool, verdict: str) -> None:
    claim = results.Claim(
        title="t", runs=["one"], metric="test_nats", lower_is_better=lower, must=2.0, aim=1.0, source="nowhere"
    )
    assert results.judge_claim(claim, ends) == verdict


@pytest.mark.usefixtures("runs")
def test_the_table_says_what_was_reached_and_missed() -> None:
    for must, value in (("100", "**1.5**"), ("-100", "1.5 (missed)")):
        Path("results.yaml").write_text(CLAIM.replace("must: 2.0", f"must: {must}"), encoding="utf-8")
        assert main(["results"]) == 0
        assert f"| {value} |" in Path("results.md").read_text(encoding="utf-8")


def test_a_claim_counts_what_its_metric_rests_on() -> None:
    metrics = {"test_targets": 9.0, "test_windows": 3.0, "validation_targets": 8.0, "validation_windows": 2.0}
    assert results.find_counts(text.VALUES, "validation_nats", metrics) == {"validation_targets": 8.0}
    assert results.find_counts(text.VALUES, "validation_window_nats", metrics) == {"validation_windows": 2.0}
    counts = results.find_counts(images.VALUES, "fid_net", {"fid_net": 1.0, "samples": 10000.0})
    assert counts == {"samples": 10000.0}
    assert results.find_counts(images.VALUES, "iw500_nats", {"samples": 9.0, "scored_images": 8.0}) == {
        "scored_images": 8.0
    }
    assert results.format_counts({"sample_sets": 3, "counts": counts}, images.VALUES) == "3 x 10,000 samples"
    found = {"sample_sets": 1, "counts": {"validation_targets": 111539.0}}
    assert results.format_counts(found, text.VALUES) == "111,539 targets"


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "metric: test_nats",
            "metric: bits",
            "speed.metric: no metric 'bits' in runs one; there are test_nats, test_targets",
        ),
        ("metric: test_nats", "metrik: test_nats", "speed.metrik: unknown key, did you mean 'metric'?"),
        (
            "lower_is_better: true",
            "lower_is_better: false",
            "speed.lower_is_better: test_nats is better when it is lower, got false",
        ),
        ("must: 2.0", "must: two", "speed.must: input should be a valid number, got 'two'"),
        ("[one, two]", "[one, two, one]", "speed.runs: one comes twice"),
        ("[one, two]", "[one, same]", "speed.runs: expected one run per seed, one, same have the seeds [0, 0]"),
        (CLAIM, "", "expected a mapping of claims, got None"),
        ("[one, two]", "[one", "not valid YAML"),
    ],
)
def test_a_wrong_claim_is_refused_by_its_name_and_key(
    old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    about = artifacts.read_json(artifacts.REPORTS / "runs" / "one" / "protocol.json")
    write("same", {"test_nats": 1.0, "test_targets": 99}, about, seconds=1.0)
    Path("results.yaml").write_text(CLAIM.replace(old, new), encoding="utf-8")
    assert main(["results"]) == 1
    assert f"results.yaml: {message}" in capsys.readouterr().err


def test_a_command_works_from_the_root_of_the_repository(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = runs.parent / f"{runs.name}_root"  # a repository with the claims in a folder of it
    folder = root / "benchmarks" / "inception"
    folder.parent.mkdir(parents=True)
    runs.rename(folder)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    monkeypatch.chdir(folder)
    absent = CLAIM.replace("speed:", "else:").replace("[one, two]", "[three]") + "  optional: true\n"
    Path("results.yaml").write_text(CLAIM + absent, encoding="utf-8")
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))
    assert found["speed"]["command"] == (
        "cd benchmarks/inception && OMP_NUM_THREADS=2 dvc repro evaluate@one evaluate@two"
    )
    assert found["else"]["command"] == "cd benchmarks/inception && dvc repro evaluate@three"


@pytest.mark.usefixtures("runs")
def test_runs_that_differ_in_more_than_the_seed_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write("two", {"test_nats": 1.0, "test_targets": 99}, make_content({"seed": 1, "model": "another"}), seconds=1.0)
    assert main(["results"]) == 1
    expected = "expected runs that differ only in the seed, model is 'm' in one and 'another' in two"
    assert f"results.yaml: speed.runs: {expected}" in capsys.readouterr().err


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("kind", ["m", "another"])
def test_each_run_may_have_a_start_of_its_own_that_differs_only_in_the_seed(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, (name, start) in enumerate((("one", "first"), ("two", "second"))):
        numbers = {"test_nats": 1.0 + seed, "test_targets": 99}
        write(name, numbers, make_content({"seed": seed, "model": "m", "start": start}), seconds=1.0)
        write(start, numbers, make_content({"seed": seed, "model": (kind, "m")[seed], "start": "none"}), seconds=1.0)
    assert main(["results"]) == (0 if kind == "m" else 1)
    assert kind == "m" or "model is 'another' in first and 'm' in second" in capsys.readouterr().err


@pytest.mark.usefixtures("runs")
def test_runs_with_different_protocols_of_the_claimed_metric_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    # Their versions differ too, which the metric of this test does not depend on.
    content = make_content({"seed": 1, "model": "m"}, context=64)
    write("two", {"test_nats": 1.0, "test_targets": 99}, content, seconds=1.0)
    assert main(["results"]) == 1
    expected = "results.yaml: speed: Not comparable: test_nats: scores.context is None in one and 64 in two"
    assert expected in capsys.readouterr().err


@pytest.mark.usefixtures("runs")
def test_an_optional_claim_without_its_runs_is_not_measured_here(capsys: pytest.CaptureFixture[str]) -> None:
    absent = CLAIM.replace("speed:", "else:").replace("[one, two]", "[three, four]")
    ratio = absent.replace("else:", "ratio:") + "  against: [one, two]\n  by: ratio\n  optional: true\n"
    Path("results.yaml").write_text(CLAIM + absent + "  optional: true\n" + ratio, encoding="utf-8")
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))
    assert found["ratio"]["value"] is None
    assert found["speed"]["value"] == 1.5
    assert (found["else"]["value"], found["else"]["command"]) == (None, "dvc repro evaluate@three evaluate@four")
    assert Path("results.md").read_text(encoding="utf-8").splitlines()[3] == (
        "| how fast (`else`) | not measured here | | | | 2 | 1 | | | | |"
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
    assert "results.json: no JSON; after a merge" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8").startswith("<<<<<<<")


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("value", [1.0, 0.0])
def test_costs_stay_where_the_records_are_gone_and_the_value_is_the_same(
    value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        artifacts.write_json(
            artifacts.REPORTS / "runs" / name / "metrics.json", {"test_nats": value, "test_targets": 99}
        )
    assert main(["results"]) == 0
    before = artifacts.read_json(Path("results.json"))
    (artifacts.RUNS / "two" / "record" / "run.json").unlink()  # as in a fresh clone
    assert main(["results"]) == 0
    assert artifacts.read_json(Path("results.json")) == before
    artifacts.write_json(artifacts.REPORTS / "runs" / "two" / "metrics.json", {"test_nats": 3.0, "test_targets": 99})
    assert main(["results"]) == 1
    assert "two/record/run.json: not found" in capsys.readouterr().err
    assert artifacts.read_json(Path("results.json")) == before


@pytest.mark.usefixtures("runs")
def test_costs_of_seeds_whose_records_are_gone_are_kept_where_one_is_added(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["results"]) == 0
    before = artifacts.read_json(Path("results.json"))["speed"]
    for name in ("one", "two"):
        (artifacts.RUNS / name / "record" / "run.json").unlink()  # as in a fresh clone
    write("three", {"test_nats": 4.5, "test_targets": 99}, make_content({"seed": 2, "model": "m"}), seconds=15.0)
    Path("results.yaml").write_text(CLAIM.replace("[one, two]", "[one, two, three]"), encoding="utf-8")
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))["speed"]
    assert found["value"] == 2.5
    assert {name: found[name] for name in results.COSTS} == {name: before[name] for name in results.COSTS}  # of two
    write("three", {"test_nats": 4.5, "test_targets": 99}, make_content({"seed": 2, "model": "m"}), seconds=25.0)
    artifacts.write_json(Path("results.json"), {"speed": before})
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))["speed"]
    assert (found["training_seconds"], found["cpu_seconds"], found["peak_memory_mib"]) == (25.0, 50.0, 100.0)
    # A seed that leaves the value as it is counts, too.
    write("three", {"test_nats": 1.5, "test_targets": 99}, make_content({"seed": 2, "model": "m"}), seconds=30.0)
    artifacts.write_json(Path("results.json"), {"speed": before})
    assert main(["results"]) == 0
    assert artifacts.read_json(Path("results.json"))["speed"]["training_seconds"] == 30.0
    # Without costs of the others there are none of all.
    artifacts.write_json(Path("results.json"), {"speed": {"value": before["value"], "seeds": [0, 1]}})
    assert main(["results"]) == 0
    assert not set(results.COSTS) & set(artifacts.read_json(Path("results.json"))["speed"])
    # The costs of another value are not known.
    artifacts.write_json(Path("results.json"), {"speed": before | {"value": 1.4}})
    assert main(["results"]) == 1
    assert "one/record/run.json: not found" in capsys.readouterr().err


@pytest.mark.usefixtures("runs")
def test_a_new_claim_about_runs_without_records_has_no_costs() -> None:
    for name in ("one", "two"):
        (artifacts.RUNS / name / "record" / "run.json").unlink()  # as in a fresh clone
    for _ in range(2):  # the second time results.json has the claim
        assert main(["results"]) == 0
        found = artifacts.read_json(Path("results.json"))["speed"]
        assert (found["value"], found["command"]) == (1.5, "dvc repro evaluate@one evaluate@two")
        assert not set(results.COSTS) & set(found)
        lines = Path("results.md").read_text(encoding="utf-8").splitlines()
        assert lines[2].endswith("| 2 | 99 targets | 2 | 1 | | | | `h` |")
        assert {line.count("|") for line in lines} == {12}


@pytest.mark.usefixtures("runs")
def test_the_ratios_of_speed_are_results_too() -> None:
    row = {"name": "a_over_b", "title": "t", "ratio": 1.1, "low": 1.0, "high": 1.2, "repeats": 5, "wanted": "<= 2"}
    row |= {"detail": "d", "processor": "p", "threads": "2", "torch": "t"}
    later = {
        "count": "200 steps",
        "seeds": [0, 1],
        "seconds": [1.1, 1.0],
        "peak_memory_mib": 512.5,
        "commit": "1a2b3c4",
    }
    one_way = later | {"seeds": [], "seconds": None}  # nothing is drawn, nothing compared
    rows = {"a_over_b": row, "c_over_d": row | later, "share": row | one_way}
    artifacts.write_json(Path("speed.json"), {"rows": rows})
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))
    assert found["c_over_d"] == found["a_over_b"] | later
    assert found["share"].keys() == found["c_over_d"].keys() - {"seeds", "seconds"}
    assert found["a_over_b"] == {  # a row of an older version, which has none of these
        "value": 1.1,
        "interval": [1.0, 1.2],
        "interval_is": "least to largest of the repeats",
        "repeats": 5,
        "detail": "d",
        "wanted": "<= 2",
        "command": "python -m speed",
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


@pytest.mark.slow
def test_the_benchmarks_last_stage_writes_them_and_keeps_costs_of_trainings_that_are_gone(runs: Path) -> None:
    def repro(*options: str) -> str:
        command = [sys.executable, "-m", "dvc", "repro", "-P", *options]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=forks.environment()).stdout

    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    Path("pipeline").symlink_to(ROOT / "pipeline")
    Path("results").mkdir()
    shutil.copy(ROOT / "benchmarks" / "results" / "dvc.yaml", "results")
    artifacts.write_json(Path("speed.json"), {"rows": {}})
    assert "Running stage" in repro()
    before = artifacts.read_json(Path("results.json"))
    assert Path("results.md").exists()
    assert "Running stage" not in repro()
    shutil.rmtree(runs / artifacts.RUNS / "one" / "record")
    assert "Running stage" in repro("--force")
    assert artifacts.read_json(Path("results.json")) == before


@pytest.mark.usefixtures("workdir")
def test_a_claim_of_feature_networks_is_a_mean_over_their_seeds(edit_params: Callable[..., None]) -> None:
    section = artifacts.encode(params.load().networks["classifier"])
    edit_params({"networks": {f"n{seed}": {**section, "seed": seed} for seed in range(3)} | {"classifier": section}})
    for seed, value in enumerate((0.94, 0.95, 0.96)):
        artifacts.write_json(artifacts.REPORTS / "networks" / f"n{seed}.json", {"accuracy": value})
    claim = CLAIM.replace("runs: [one, two]", "networks: [n0, n1, n2]").replace("test_nats", "accuracy")
    claim = claim.replace("must: 2.0", "must: 0.9").replace("lower_is_better: true", "lower_is_better: false")
    Path("results.yaml").write_text(claim, encoding="utf-8")
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))["speed"]
    half = 4.30265 * 0.01 / 3**0.5
    assert (found["value"], found["seeds"], found["verdict"]) == (pytest.approx(0.95), [0, 1, 2], "reached")
    assert found["interval"] == pytest.approx([0.95 - half, 0.95 + half], abs=1e-6)
    assert found["command"] == "dvc repro networks@n0 networks@n1 networks@n2"
    assert "| how fast (`speed`) | **0.95** | [0.9252, 0.9748] | 3 | |" in Path("results.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.usefixtures("workdir")
@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("networks: [classifier, other]", "no 'probe_accuracy' of a network 'other'"),
        ("networks: [classifier, wider]", "differ only in the seed, wider: .'width'."),
        ("networks: [classifier, classifier]", "classifier comes twice"),
        ("runs: [gan]\n  networks: [classifier]", "expected either runs, networks or spread"),
        ("networks: [classifier]\n  # lower", "lower_is_better: probe_accuracy is better when it is higher"),
        ("networks: [classifier, stale]", "the numbers of stale are not of its weights"),
    ],
)
def test_networks_that_are_missing_or_no_seeds_of_one_are_refused(
    edit_params: Callable[..., None], capsys: pytest.CaptureFixture[str], claim: str, message: str
) -> None:
    section = artifacts.encode(params.load().networks["classifier"])
    others = {"wider": {**section, "width": 32, "seed": 1}, "stale": {**section, "seed": 1}}
    edit_params({"networks": {"classifier": section, **others}})
    for name in ("classifier", *others):
        about = {"probe_accuracy": 0.9, "weights_sha256": "0" * 64}
        artifacts.write_json(artifacts.REPORTS / "networks" / f"{name}.json", about)
    artifacts.write_bytes(artifacts.NETWORKS / "stale" / "model.safetensors", b"other weights")
    text = CLAIM.replace("runs: [one, two]", claim).replace("test_nats", "probe_accuracy")
    text = text if "# lower" in claim else text.replace("lower_is_better: true", "lower_is_better: false")
    Path("results.yaml").write_text(text, encoding="utf-8")
    assert main(["results"]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_run_from_outside_weights_is_no_seed_of_one_from_scratch(
    runs: Path, edit_params: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_params({})  # a params.yaml
    shipped = artifacts.encode(params.load().runs["transformer"])
    weights = {"address": "elsewhere", "sha256": "a" * 64}
    edit_params({"runs": {"one": shipped, "two": {**shipped, "seed": 1, "weights": weights}}})
    assert runs == Path.cwd()
    assert main(["results"]) == 1
    assert "weights is none in one and aaaa" in capsys.readouterr().err


@pytest.mark.usefixtures("workdir")
def test_an_optional_claim_of_networks_that_are_not_made_is_not_measured_here() -> None:
    text = CLAIM.replace("runs: [one, two]", "networks: [classifier]").replace(
        "lower_is_better: true", "lower_is_better: false"
    )
    Path("results.yaml").write_text(text + "  optional: true\n", encoding="utf-8")
    assert main(["results"]) == 0
    assert artifacts.read_json(Path("results.json"))["speed"]["value"] is None


def test_a_claim_of_the_trainings_of_pipeline_spread_is_a_mean_over_their_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spread: dict[str, Any] = {}
    for seed, fid in ((1, 5.2), (2, 5.4), (0, 5.0)):
        write_images("gan", seed=seed, fid=(fid - 0.1, fid + 0.1))
        own = trainings.describe(reproduce.read_claims(Path(), "gan"))
        spread = trainings.add(spread or own, own)
    folder = artifacts.REPORTS / "runs" / "gan"
    artifacts.write_json(folder / trainings.NAME, spread)
    about = f"spread: {folder}, metric: fid_x, lower_is_better: true, must: 6, aim: 5"
    claim = f"fid: {{title: FID, {about}, source: us}}\n"
    Path("results.yaml").write_text(claim)
    assert main(["results"]) == 0
    found = artifacts.read_json(Path("results.json"))["fid"]
    assert found["value"] == pytest.approx(5.2)
    half = 4.302653 * 0.2 / math.sqrt(3)
    assert found["interval"] == pytest.approx([5.2 - half, 5.2 + half])
    assert (found["seeds"], found["verdict"]) == ([0, 1, 2], "reached")
    assert found["command"] == "cd . && pipeline spread gan --seeds 1 2"
    assert "2 x 1,000 samples" in Path("results.md").read_text()
    Path("results.yaml").write_text(claim.replace("fid_x", "fid_y"))
    assert main(["results"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: results.yaml: fid.metric: no metric 'fid_y' in {folder}; there are fid_x")
    Path("results.yaml").write_text(claim)
    (folder / trainings.NAME).rename("kept.json")
    Path("results.yaml").write_text(claim.replace("source: us", "source: us, optional: true"))
    assert main(["results"]) == 0
    assert "not measured here" in Path("results.md").read_text()
    Path("kept.json").rename(folder / trainings.NAME)
    write_images("gan", fid=(5.1, 5.1))
    assert main(["results"]) == 1
    assert "spread.json: expected trainings of the run's present numbers" in capsys.readouterr().err
