"""What `pipeline reproduce` says of a claim; test_dvc.py runs it in a fresh clone."""

import copy
import math
from typing import Any

import pytest

from pipeline import params
from pipeline.__main__ import main
from pipeline.commands.reproduce import EXACT, NOT, WITHIN, find_first, find_interval, judge, render
from pipeline.protocol import ProtocolError
from tests.conftest import ROOT

CLAIM: dict[str, Any] = {
    "metrics": {"fid": 4.0, "iw": 100.0, "iw_se": 0.5, "samples": 1000},
    "sets": {"fid": [3.0, 4.0, 5.0]},
    "protocol": {"protocol": {"metric": {"name": "images"}, "features": {"classifier": {"weights_sha256": "a"}}}},
}


def test_intervals_are_student_s_over_sets_or_two_standard_errors_or_none() -> None:
    low, high = find_interval("fid", CLAIM)
    assert (high - low) / 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(0.975, 2), standard deviation 1
    assert find_interval("iw", CLAIM) == pytest.approx((100 - 0.98, 100 + 0.98))
    assert all(math.isnan(value) for value in find_interval("samples", CLAIM))


def test_a_claim_is_exact_within_its_interval_or_not_reproduced() -> None:
    found = copy.deepcopy(CLAIM)
    found["metrics"] |= {"fid": 4.5, "iw": 101.5, "iw_se": 0.5}
    verdicts = {metric: verdict for metric, *_, verdict in judge(CLAIM, found, "train@gan")}
    assert verdicts == {
        "fid": WITHIN,
        "iw": f"{NOT}, first different: train@gan",
        "iw_se": EXACT,
        "samples": EXACT,
    }


def test_another_protocol_is_refused_but_feature_networks_are_reproduced_too() -> None:
    found = copy.deepcopy(CLAIM)
    found["protocol"]["protocol"]["features"]["classifier"]["weights_sha256"] = "b"
    assert list(judge(CLAIM, found, "none"))
    found["protocol"]["protocol"]["metric"]["name"] = "text"
    with pytest.raises(ProtocolError, match=r"metric\.name is 'images' and 'text'"):
        list(judge(CLAIM, found, "none"))


def test_the_first_stage_that_differs_is_named_in_the_order_of_the_pipeline() -> None:
    settings = params.load(ROOT / "params.yaml")
    claimed = {
        "prepare@images": {"data/prepared/images": "1"},
        "features@classifier": {"data/features/classifier": "1"},
        "train@gan": {"data/runs/gan/model": "1", "data/runs/gan/record": "1"},
        "evaluate@gan": {"reports/runs/gan/metrics.json": "1"},
    }
    found = copy.deepcopy(claimed)
    found["train@gan"]["data/runs/gan/record"] = "2"  # times differ always
    assert find_first(claimed, found, "gan", settings) == "none"
    found["evaluate@gan"]["reports/runs/gan/metrics.json"] = "2"
    assert find_first(claimed, found, "gan", settings) == "evaluate@gan"
    found["features@classifier"]["data/features/classifier"] = "2"
    assert find_first(claimed, found, "gan", settings) == "features@classifier"


def test_the_table_counts_each_verdict() -> None:
    rows = [("gan", "fid", 4.0, "", 4.0, EXACT), ("gan", "iw", 1.0, "", 2.0, f"{NOT}, first different: train@gan")]
    assert render(rows).splitlines()[-1] == "2 claims: 1 bit for bit, 0 within the interval, 1 not"


@pytest.mark.usefixtures("workdir")
def test_an_unknown_run_is_refused_before_anything_is_cloned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "gam"]) == 1
    assert "no run gam; params.yaml has gan, vae, transformer" in capsys.readouterr().err
