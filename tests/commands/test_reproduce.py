"""What `pipeline reproduce` says of a claim; test_dvc.py runs it in a fresh clone."""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from pipeline import params
from pipeline.__main__ import main
from pipeline.commands import reproduce
from pipeline.commands.reproduce import (
    EXACT,
    NOT,
    OPEN,
    WITHIN,
    find_first,
    format_table,
    judge_claims,
    list_inputs,
    note_versions,
)
from pipeline.evidence.values import find_interval
from pipeline.metrics import images, text
from tests.conftest import ROOT, squeeze

CLAIM: dict[str, Any] = {
    "metrics": {"fid_x": 4.0, "iw5_nats": 100.0, "iw5_nats_se": 0.5, "fid_x_floor": 1.0, "samples": 1000},
    "sets": {"fid_x": [3.0, 4.0, 5.0]},
    "protocol": {
        "protocol": {
            "metric": {"name": "images"},
            "network": {"name": "x", "weights_sha256": "a"},
            "scores": {"of": "bernoulli"},
            "versions": {"numpy": "2.4.6", "torch": "2.13.0"},
        },
        "run": {"seed": 0},
        "values": {
            "fid_x": {"fields": ["network", "reference", "versions.numpy", "versions.torch"], "hash": "1"},
            "iw5_nats": {"fields": ["scores", "versions.torch"], "hash": "2"},
        },
    },
}
SAMPLING = {"count": 1, "length": 1, "prompt": "a", "temperature": 1.0, "top_k": 0, "top_p": 1.0, "stride": 1.0}
CONFIG = text.Config.model_validate({"sampling": SAMPLING | {"random_windows": 0}})
RUN = "data/runs/${item}"
# Stages that copy what git has: the cheapest project with the stages of a run.
STAGES = {
    stage: {
        "foreach": items,
        "do": {
            "cmd": f"mkdir -p $(dirname {out}) && cp -r made/{source} {out}",
            "deps": deps,
            "outs": [{out: {"cache": stage != "evaluate"}}],
        },
    }
    for stage, items, source, deps, out in (
        ("fetch", ["text", "unused"], "${item}", [], "data/raw/${item}"),
        ("prepare", ["text", "unused"], "${item}", ["data/raw/${item}"], "data/prepared/${item}"),
        ("train", ["transformer"], "text", ["data/prepared/text"], f"{RUN}/model"),
        ("sample", ["transformer"], "text", [f"{RUN}/model"], f"{RUN}/samples"),
        ("evaluate", ["transformer"], "reports", ["data/code", f"{RUN}/samples"], "reports/runs/${item}"),
    )
}


def test_intervals_are_student_s_over_sets_or_two_standard_errors_or_none() -> None:
    low, high = find_interval(images.VALUES, "fid_x", CLAIM)
    assert (high - low) / 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(0.975, 2), standard deviation 1
    assert find_interval(images.VALUES, "iw5_nats", CLAIM) == pytest.approx((100 - 0.98, 100 + 0.98))
    assert all(math.isnan(value) for value in find_interval(images.VALUES, "samples", CLAIM))


@pytest.mark.parametrize("side", [-1, 1])
def test_functions_of_a_text_s_nats_have_the_nats_interval_under_the_same_function(side: int) -> None:
    def measure(nats: torch.Tensor) -> dict[str, float]:
        sizes = {"tokens": len(nats) + 1, "characters": 2500, "bytes": 2600, "words": 450}
        sizes["unknown_characters"] = 0
        known = {"entropy_rate_nats": 0.5, "test_nats": 0.5}
        evidence = text.Evidence({"test": nats}, {"test": sizes}, known)
        return {name: value for name, (value,) in text.compute(evidence, CONFIG).items()}

    nats = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    metrics = measure(nats)
    end = measure(nats + side * 1.96 * metrics["test_nats_se"])  # every target as much dearer as the mean may be
    derived = [name for name in metrics if not name.endswith(("_targets", "_se", "_characters"))]
    assert len(derived) == 6  # nats, two kinds of bits, two perplexities, excess
    for name in derived:
        interval = find_interval(text.VALUES, name, {"metrics": metrics, "sets": {}})
        assert interval[side > 0] == pytest.approx(end[name], rel=1e-9), name


def test_without_an_error_of_the_nats_their_functions_have_no_interval_either() -> None:
    for metrics in ({"test_nats": 1.0, "test_bits_per_byte": 1.4}, {"test_nats": 0.0, "test_bits_per_byte": 0.0}):
        assert math.isnan(find_interval(text.VALUES, "test_bits_per_byte", {"metrics": metrics, "sets": {}})[0])


def test_a_claim_is_exact_within_its_interval_or_not_reproduced() -> None:
    claim = copy.deepcopy(CLAIM)
    claim["metrics"] |= {"kid_x": 2.0, "recall_x": 0.5}
    found = copy.deepcopy(claim)
    found["metrics"] |= {"fid_x": 4.5, "iw5_nats": 101.5}
    del found["metrics"]["kid_x"]
    verdicts = {metric: verdict for metric, *_, verdict in judge_claims(claim, found, "train@gan")}
    assert verdicts == {
        "fid_x": WITHIN,
        "iw5_nats": f"{NOT}, first different: train@gan",
        "kid_x": f"{NOT}, missing",
        "recall_x": EXACT,
    }


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        ({"fid_x": [-171.0, 311.0]}, "2 sets: too few for an interval; 3 are needed"),
        ({"fid_x": [4.0, 4.0, 4.0]}, "all 3 sets equal"),
        ({}, "no interval: one value, without a standard error over enough test data"),
    ],
)
def test_a_claim_without_an_interval_is_exact_or_gets_no_verdict(sets: dict[str, Any], reason: str) -> None:
    claim = CLAIM | {"metrics": {"fid_x": 4.0}, "sets": sets}
    assert [row[-1] for row in judge_claims(claim, claim, "none")] == [EXACT]
    found = claim | {"metrics": {"fid_x": 4.5}}
    rows = list(judge_claims(claim, found, "train@gan"))
    assert [(row[2], row[-1]) for row in rows] == [("", f"{OPEN}, {reason}; first different: train@gan")]
    table = format_table([("gan", *row) for row in rows], [])
    assert table.splitlines()[-1].endswith("0 bit for bit, 0 within the interval, 0 not, 1 without a verdict")


def test_a_standard_error_over_a_handful_of_things_is_no_interval() -> None:
    for windows, known in ((2.0, False), (19.0, False), (20.0, True)):
        metrics = {"test_window_nats": 1.0, "test_window_nats_se": 0.1, "test_windows": windows}
        low, _ = find_interval(text.VALUES, "test_window_nats", {"metrics": metrics, "sets": {}})
        assert math.isfinite(low) == known


def test_floors_errors_and_counts_are_no_claims() -> None:
    found = copy.deepcopy(CLAIM)
    found["metrics"] |= {"iw5_nats_se": 0.6, "fid_x_floor": 1.1, "samples": 999}
    assert [(metric, verdict) for metric, *_, verdict in judge_claims(CLAIM, found, "none")] == [
        ("fid_x", EXACT),
        ("iw5_nats", EXACT),
    ]


def test_a_claim_of_another_protocol_is_not_reproduced_but_feature_networks_are_reproduced_too() -> None:
    found = copy.deepcopy(CLAIM)
    protocol = found["protocol"]["protocol"]
    protocol["network"]["weights_sha256"] = "b"
    assert {verdict for *_, verdict in judge_claims(CLAIM, found, "none")} == {EXACT}
    protocol["versions"]["torch"] = "2.14.0"  # comes after metric.name, and is none of the fields to be named
    protocol["scores"]["of"] = "logistic"
    del found["metrics"]["iw5_nats"]
    expected = f"{NOT}, other protocol: scores.of; first different: prepare@images"
    assert [verdict for *_, verdict in judge_claims(CLAIM, found, "prepare@images")] == [EXACT, expected]
    protocol["reference"] = {"sha256": "c"}
    expected = f"{NOT}, other protocol: reference.sha256; first different: prepare@images"
    assert next(judge_claims(CLAIM, found, "prepare@images"))[-1] == expected


def test_other_versions_are_noted_and_judged_as_usual() -> None:
    found = copy.deepcopy(CLAIM)
    found["protocol"]["protocol"]["versions"]["torch"] = "2.14.0"
    found["metrics"]["iw5_nats"] = 101.5
    assert [row[-1] for row in judge_claims(CLAIM, found, "sample@gan")] == [
        EXACT,
        f"{NOT}, first different: sample@gan",
    ]
    notes = list(note_versions(CLAIM, found))
    assert notes == ["evaluated with torch 2.14.0, claimed with torch 2.13.0"]  # once, though two values depend on it
    assert format_table([("gan", "fid", 4.0, "", 4.0, EXACT)], notes).splitlines()[-3] == notes[0]


def test_the_first_stage_that_differs_is_named_in_the_order_of_the_pipeline() -> None:
    settings = params.load(ROOT / "params.yaml")
    claimed = {
        "prepare@images": {"data/prepared/images": "1"},
        "networks@classifier": {"data/networks/classifier": "1"},
        "train@gan": {"data/runs/gan/model": "1", "data/runs/gan/record": "1"},
        "evaluate@gan": {"reports/runs/gan/metrics.json": "1"},
    }
    found = copy.deepcopy(claimed)
    found["train@gan"]["data/runs/gan/record"] = "2"  # times differ always
    assert find_first(claimed, found, "gan", settings) == "none"
    found["evaluate@gan"]["reports/runs/gan/metrics.json"] = "2"
    assert find_first(claimed, found, "gan", settings) == "evaluate@gan"
    found["networks@classifier"]["data/networks/classifier"] = "2"
    assert find_first(claimed, found, "gan", settings) == "networks@classifier"
    chain = {f"train@{run}": {f"data/runs/{run}/model": "1"} for run in ("codes", "codes_prior")}
    other = {f"train@{run}": {f"data/runs/{run}/model": "2"} for run in ("codes", "codes_prior")}
    assert find_first(chain, other, "codes_prior", settings) == "train@codes"  # its start


def test_what_a_run_reads_is_made_by_its_own_stages() -> None:
    settings = params.load(ROOT / "params.yaml")
    assert list_inputs("transformer", settings) == ["fetch@text", "prepare@text", "train@transformer"]
    assert list_inputs("gan", settings) == ["fetch@images", "prepare@images", "networks@classifier", "train@gan"]


def test_the_table_counts_each_verdict() -> None:
    rows = [("gan", "fid", 4.0, "", 4.0, EXACT), ("gan", "iw", 1.0, "", 2.0, f"{NOT}, first different: train@gan")]
    assert format_table(rows, []).splitlines()[-1] == "2 claims: 1 bit for bit, 0 within the interval, 1 not"


@pytest.mark.usefixtures("workdir")
def test_an_unknown_run_is_refused_before_anything_is_cloned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "gam"]) == 1
    assert "no run gam; params.yaml has gan, vae, transformer" in capsys.readouterr().err


def test_own_files_that_git_does_not_hold_are_named_before_anything_is_cloned(
    workdir: Path, edit_params: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_params({"data.text.source": "text_file", "data.text.path": "texts"})
    (workdir / "texts").mkdir()
    for name in (".gitkeep", "novel.txt"):
        (workdir / "texts" / name).touch()
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "add", "texts/.gitkeep"], check=True)
    assert main(["reproduce", "transformer"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: data.text.path: git has no file of texts, so a clone has none; ")
    subprocess.run(["git", "add", "texts/novel.txt"], check=True)
    reproduce.require_own("text", params.load())


@pytest.mark.slow
def test_a_project_in_a_subfolder_is_evaluated_from_its_own_cache_with_its_own_outputs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def call(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    folder = tmp_path / "own"
    for name in ("text", "unused", "reports"):
        (folder / "made" / name).mkdir(parents=True)
        (folder / "made" / name / "name").write_text(name)
    for stem, value in CLAIM.items():
        (folder / "made" / "reports" / f"{stem}.json").write_text(json.dumps(value))
    (folder / ".gitignore").write_text("/data/\n")
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    check = {"cmd": "mkdir -p data/code && touch data/code/one", "outs": ["data/code"]}
    YAML().dump({"stages": {"check": check, **STAGES}}, folder / "dvc.yaml")
    dvc = [sys.executable, "-m", "dvc"]
    call("git", "init", "--quiet", str(tmp_path))
    call(*dvc, "init", "--quiet", "--subdir")
    call(*dvc, "cache", "dir", "../elsewhere")
    call(*dvc, "repro", "--quiet")
    call("git", "add", ".")
    call("git", "-c", "user.name=test", "-c", "user.email=test@example.invalid", "commit", "--quiet", "-m", "own")
    lock = reproduce.read_outputs(folder)
    digest = lock["fetch@unused"]["data/raw/unused"]
    (tmp_path / "elsewhere" / "files" / "md5" / digest[:2] / digest[2:]).unlink()
    monkeypatch.chdir(folder)
    assert main(["reproduce", "transformer", "--evaluate", "--save"]) == 0
    table = squeeze(capfd.readouterr().out)
    rows = [line for line in table.splitlines() if line.startswith("| transformer |")]
    assert [row.rpartition(" | ")[2] for row in rows] == [f"{EXACT} |"] * 2
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True).stdout
    made, _, saved = (folder / "reports" / "reproduction.md").read_text().partition("\n\n")
    assert made.startswith(f"`pipeline reproduce transformer --evaluate` of commit {commit[:12]}, ")
    assert squeeze(saved) == table
