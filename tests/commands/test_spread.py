"""pipeline spread: what it refuses, and real stages of DVC over seeds in a clone."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline import artifacts, params
from pipeline.__main__ import main
from pipeline.artifacts import ArtifactError
from pipeline.commands import spread
from pipeline.commands.reproduce import read_claims
from pipeline.evidence import trainings
from pipeline.params import Params
from tests.commands.test_compare import write
from tests.commands.test_reproduce import CLAIM
from tests.conftest import ROOT, squeeze

# An evaluation that is a function of the seed: the cheapest stage whose numbers spread.
EVALUATE = """
import json, pathlib, sys
for stem, content in json.loads(pathlib.Path("claim.json").read_text()).items():
    if stem == "protocol":
        content["run"]["seed"] = int(sys.argv[1])
    if stem == "metrics":
        content["fid_x"] += int(sys.argv[1]) ** 2
    folder = pathlib.Path("reports/runs/transformer")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(content))
"""


def load_params() -> Params:
    return params.load(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("runs", "seeds", "said"),
    [
        (["gam"], None, "no run gam; params.yaml has gan, vae, "),
        (["gan"], [1, 0], "--seeds: 0 for gan: gan has its committed seed; choose other seeds"),
        (["codes_prior"], [0], "--seeds: 0 for codes_prior: codes_prior has its committed seed"),
    ],
)
def test_a_wrong_run_or_seed_is_refused(runs: list[str], seeds: list[int] | None, said: str) -> None:
    with pytest.raises(ArtifactError, match=f"^{re.escape(said)}"):
        spread.plan_seeds(runs, seeds, load_params())


def test_a_start_would_have_one_seed_and_not_its_committed_one() -> None:
    settings = load_params()
    for seed, said in ((1, "codes has its committed seed"), (4, "codes has seed 5 too")):
        settings.runs["codes"] = settings.runs["codes"].model_copy(update={"seed": seed})
        settings.runs["codes_prior"] = settings.runs["codes_prior"].model_copy(update={"seed": 0})
        with pytest.raises(ArtifactError, match=f": {said}; choose other seeds, or fewer runs at a time"):
            spread.plan_seeds(["codes", "codes_prior"] if seed == 4 else ["codes_prior"], None, settings)


def test_each_run_has_the_two_seeds_after_its_own_or_those_asked_for_once() -> None:
    settings = load_params()
    settings.runs["vae"] = settings.runs["vae"].model_copy(update={"seed": 5})
    assert spread.plan_seeds(["gan", "vae"], None, settings) == [{"gan": 1, "vae": 6}, {"gan": 2, "vae": 7}]
    assert spread.plan_seeds(["gan"], [4, 3, 4], settings) == [{"gan": 4}, {"gan": 3}]


@pytest.mark.usefixtures("workdir")
def test_a_negative_seed_is_refused_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spread", "gan", "--seeds", "1", "-1"]) == 1
    assert capsys.readouterr().err == "error: --seeds: expected numbers of 0 or more, got -1\n"


@pytest.mark.usefixtures("workdir")
def test_a_run_without_committed_numbers_is_named_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "add", "params.yaml"], check=True)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    subprocess.run(["git", *who, "commit", "--quiet", "-m", "one"], check=True)
    assert main(["spread", "gan"]) == 1
    said = "error: gan: the last commit has no numbers of it: `dvc repro evaluate@gan`, then commit them\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_run_that_starts_from_another_one_is_trained_with_it_under_the_same_seed(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    settings = params.load(path)
    assert settings.runs["codes_prior"].start == "codes"
    spread.set_seeds(path, {"codes_prior": 7, "vae": 8}, settings)
    seeds = {name: run.seed for name, run in params.load(path).runs.items()}
    assert seeds == {name: run.seed for name, run in settings.runs.items()} | {"codes": 7, "codes_prior": 7, "vae": 8}


def test_seeds_that_are_known_stay_if_they_belong_to_the_same_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(seed: int, config: int = 1) -> dict[str, Any]:
        write("gan", seed=seed, config=config, fid=(5.0 + seed,))
        return trainings.describe(read_claims(Path(), "gan"))

    def save(config: int, *seeds: int) -> list[int]:
        found = functools.reduce(trainings.add, [describe(seed, config) for seed in (*seeds, 0)])
        written = spread.save("gan", found, read_claims(Path(), "gan"))
        assert written == artifacts.read_json(artifacts.REPORTS / "runs" / "gan" / trainings.NAME)
        return list(written["seeds"])

    monkeypatch.chdir(tmp_path)
    assert save(1, 1, 2) == [0, 1, 2]
    assert save(1, 3) == [0, 1, 2, 3]
    assert save(2, 1) == [0, 1]  # other settings
    with pytest.raises(ValueError, match="expected spreads of one run's settings"):
        trainings.add(describe(0, 1), describe(1, 2))


@pytest.mark.slow
def test_numbers_of_further_seeds_are_written_and_shown_and_the_folder_s_results_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def call(*command: str) -> None:
        subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)

    (tmp_path / "claim.json").write_text(json.dumps(CLAIM))
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    stage = {
        "cmd": "python evaluate.py ${item.seed}",
        "deps": ["evaluate.py", "claim.json"],
        "outs": [{f"reports/runs/${{key}}/{stem}.json": {"cache": False}} for stem in CLAIM],
    }
    runs: dict[str, Any] = {"transformer": "${runs.transformer}"}
    YAML().dump({"stages": {"evaluate": {"foreach": runs, "do": stage}}}, tmp_path / "dvc.yaml")
    dvc = [sys.executable, "-m", "dvc"]
    call("git", "init", "--quiet")
    call(*dvc, "init", "--quiet")
    call(*dvc, "repro", "--quiet")
    call("git", "add", ".")
    call("git", "-c", "user.name=test", "-c", "user.email=test@example.invalid", "commit", "--quiet", "-m", "one")
    monkeypatch.chdir(tmp_path)
    assert main(["spread", "transformer"]) == 0
    assert "| transformer | fid_x | 0, 1, 2 | 4, 5, 8 | [-4.676, 16.01] |" in squeeze(capfd.readouterr().out)
    found = artifacts.read_json(artifacts.REPORTS / "runs" / "transformer" / trainings.NAME)
    assert found["values"]["fid_x"]["trainings"] == [4.0, 5.0, 8.0]
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    assert changed == "?? reports/runs/transformer/spread.json\n"
