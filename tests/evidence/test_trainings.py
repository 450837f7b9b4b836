"""Spread over trainings: the prediction interval against its definition, and what belongs together."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import artifacts
from pipeline.commands.reproduce import EXACT, NEAR, NOT, OPEN, judge_claims, read_claims
from pipeline.evidence import trainings
from tests.commands.test_compare import PROTOCOL, write

FID = (4.9, 5.0, 5.1)  # one training: an interval over three sets, 5 +- 0.25


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read_claim(name: str = "gan", fid: tuple[float, ...] = FID, **changes: Any) -> dict[str, Any]:
    write(name, fid=fid, **changes)
    return read_claims(Path(), name)


def spread_over(*means: float) -> dict[str, Any]:
    """Return the spread of trainings with the seeds 0, 1, ... whose FID is a mean each."""
    spread = trainings.describe(read_claim(fid=(means[0],)))
    for seed, mean in enumerate(means[1:], 1):
        spread = trainings.add(spread, trainings.describe(read_claim(fid=(mean,), seed=seed)))
    return spread


def test_one_more_value_of_a_normal_law_is_in_its_interval_as_often_as_said() -> None:
    values = np.random.default_rng(0).normal(7.0, 3.0, (2_000, 4))
    hits = [low <= last <= high for *known, last in values for low, high in [trainings.predict(known)]]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)  # three binomial standard errors
    assert trainings.predict([1.0, 2.0, 3.0]) == pytest.approx(
        (2 - 4.302653 * math.sqrt(4 / 3), 2 + 4.302653 * math.sqrt(4 / 3))
    )
    assert all(math.isnan(end) for few in ([1.0, 2.0], [1.0] * 3) for end in trainings.predict(few))


def test_a_claim_of_another_training_may_be_as_far_as_one_more_seed() -> None:
    claim, spread = read_claim(), spread_over(5.0, 5.6, 5.3)  # mean 5.3, one more: 5.3 +- 1.49
    near, far = read_claim(fid=(6.0,)), read_claim(fid=(7.0,))

    def judge(found: dict[str, Any], spread: dict[str, Any] | None) -> str:
        return next(judge_claims(claim, found, "train@gan", spread))[-1]

    assert judge(claim, spread) == EXACT
    assert judge(near, spread) == f"{NEAR} [3.81, 6.79] of 3 trainings"
    assert judge(near, None).startswith(NOT)  # the same weights have no spread over trainings
    assert judge(far, spread).startswith(NOT)
    assert judge(near, spread_over(5.0, 5.6)).startswith(NOT)  # two trainings say too little
    single = read_claim(fid=(5.0,))
    assert next(judge_claims(single, near, "train@gan", spread))[-1] == f"{NEAR} [3.81, 6.79] of 3 trainings"
    assert next(judge_claims(single, near, "train@gan"))[-1].startswith(OPEN)


def test_a_spread_is_read_only_if_the_claim_is_one_of_its_trainings() -> None:
    spread = spread_over(5.0, 5.6, 5.3)
    artifacts.write_json(artifacts.REPORTS / "runs" / "gan" / trainings.NAME, spread)

    def read(name: str = "gan", fid: tuple[float, ...] = FID, **changes: Any) -> dict[str, Any] | None:
        return trainings.read(Path(), name, read_claim(name, fid, **changes))

    assert read() == spread
    assert read("vae") is None
    assert read(fid=(5.1,)) is None  # other bits, or other code
    assert read(seed=3) is None
    assert read(config=2) is None
    assert read(reference={"sha256": {"test": "other", "train": "u"}}) is None
    for same in ({"code": {"metric": "3", "network": "4"}}, {"versions": {**PROTOCOL["versions"], "torch": "2.15.0"}}):
        assert read(**same) == spread


def test_trainings_of_one_seed_count_once() -> None:
    spread = spread_over(5.0, 5.6)
    again = trainings.add(spread, trainings.describe(read_claim(fid=(5.7,), seed=1)))
    assert (again["seeds"], again["values"]["fid_x"]["trainings"]) == ([0, 1], [5.0, 5.7])
    assert spread == copy.deepcopy(spread_over(5.0, 5.6))
