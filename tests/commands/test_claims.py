"""pipeline claims: what it says of numbers that came out again, of others, of other settings and of new runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import artifacts
from pipeline.__main__ import main
from pipeline.commands.reproduce import EXACT, NOT, WITHIN, judge_claims, read_claims
from pipeline.evidence import trainings
from pipeline.stages import evaluate, networks, sample, train
from tests.commands.test_compare import commit, git, write
from tests.conftest import TINY

FOUND = (4.0, 5.0, 6.0)  # t(0.975, 2) / sqrt(3): 5 +- 2.48


@pytest.fixture
def claimed(workdir: Path) -> Path:
    """A repository whose run gan has a FID of 5 [2.5, 7.5]."""
    write("gan", fid=FOUND, others={"precision_x": 0.5})
    git("init", "-q")
    commit()
    return workdir


def run(capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["claims"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("claimed")
def test_equal_numbers_are_reproduced_bit_for_bit_and_other_runs_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = run(capsys)
    assert first == "gan: fid_x 5, claimed 5 [2.516, 7.484]; 2 of 2 claims reproduced, 2 of them bit for bit"
    assert others == [
        f"{name}: no numbers yet; `dvc repro evaluate@{name}` makes them" for name in ("vae", "transformer")
    ]


@pytest.mark.usefixtures("claimed")
def test_numbers_within_the_interval_are_reproduced_and_the_others_are_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("gan", fid=(5.0, 6.0, 7.0), others={"precision_x": 0.4})
    first, listed, *_, advice, command = run(capsys)
    assert first == "gan: fid_x 6, claimed 5 [2.516, 7.484]; 1 of 2 claims reproduced, 0 of them bit for bit"
    assert listed.startswith("  precision_x 0.4, claimed 0.5")
    assert advice.startswith("2 files of results differ from the last commit: `git commit -a`")
    assert command.startswith("`git restore dvc.lock reports && dvc checkout`")


def write_models(md5: str) -> None:
    """Write a dvc.lock whose run gan has a model of this hash."""
    stage = {"cmd": "true", "outs": [{"path": "data/runs/gan/model", "md5": md5}]}
    artifacts.write_json(Path("dvc.lock"), {"schema": "2.0", "stages": {"train@gan": stage}})  # JSON is YAML


@pytest.mark.usefixtures("claimed")
def test_another_training_may_be_as_far_as_one_more_seed_and_equal_weights_may_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_models("1")
    spread = trainings.describe(read_claims(Path(), "gan"))
    for seed, (fid, precision) in enumerate([(6.0, 0.46), (7.0, 0.42)], 1):
        write("gan", fid=(fid,), seed=seed, others={"precision_x": precision})
        spread = trainings.add(spread, trainings.describe(read_claims(Path(), "gan")))
    artifacts.write_json(artifacts.REPORTS / "runs" / "gan" / trainings.NAME, spread)
    write("gan", fid=FOUND, others={"precision_x": 0.5})
    commit()
    write("gan", fid=FOUND, others={"precision_x": 0.4})
    first, listed, *_ = run(capsys)
    assert "1 of 2 claims reproduced, 1 of them bit for bit" in first
    assert listed.startswith("  precision_x 0.4, claimed 0.5: no verdict, no interval: one value")
    write_models("2")
    first, listed, *_ = run(capsys)
    assert "2 of 2 claims reproduced, 1 of them bit for bit" in first
    assert listed == "  precision_x 0.4, claimed 0.5: within the spread [0.2613, 0.6587] of 3 trainings"


@pytest.mark.usefixtures("claimed")
def test_other_settings_and_new_runs_have_no_claim(capsys: pytest.CaptureFixture[str]) -> None:
    write("gan", fid=FOUND, config=2)
    write("vae", fid=FOUND)
    first, second, *_ = run(capsys)
    assert first == "gan: fid_x 5; no claim of these settings: the committed run has other config.steps"
    assert second == "vae: fid_x 5; git has no claim of this run"


@pytest.mark.usefixtures("claimed")
def test_a_number_that_the_commit_does_not_have_is_no_claim(capsys: pytest.CaptureFixture[str]) -> None:
    path = artifacts.REPORTS / "runs" / "gan" / "metrics.json"
    artifacts.write_json(path, {"samples": 1000, "precision_x": 0.5})
    commit()
    write("gan", fid=FOUND, others={"precision_x": 0.5})
    first, *_ = run(capsys)
    assert first == "gan: fid_x 5, not among the claims; 1 of 1 claims reproduced, 1 of them bit for bit"


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
def test_another_machine_s_bits_are_within_the_claims_by_one_judge_and_not_by_another(
    edit_params: Callable[..., None],
) -> None:
    """Weights that differ in the last bits, as of another processor; then a judge that was trained elsewhere."""
    edit_params({key: value for key, value in TINY.items() if not key.startswith("networks.")})
    networks.main("classifier")
    train.main("gan")

    def measure() -> dict[str, object]:
        sample.main("gan")
        evaluate.main("gan")
        return read_claims(Path(), "gan")

    claim = measure()
    folder = artifacts.RUNS / "gan" / "model"
    weights = artifacts.read_tensors(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    noisy = {
        name: value * (1 + 1e-6 * torch.randn(value.shape, generator=generator)) if value.is_floating_point() else value
        for name, value in weights.items()
    }
    artifacts.write_tensors(folder / "model.safetensors", noisy)
    artifacts.seal(folder)
    verdicts = {row[0]: row[-1] for row in judge_claims(claim, measure(), "")}
    assert set(verdicts.values()) <= {EXACT, WITHIN}
    assert verdicts["fid_classifier"] == WITHIN
    edit_params({key: value for key, value in TINY.items() if key.startswith("networks.")})
    networks.main("classifier")
    evaluate.main("gan")
    assert any(row[-1].startswith(NOT) for row in judge_claims(claim, read_claims(Path(), "gan"), ""))
