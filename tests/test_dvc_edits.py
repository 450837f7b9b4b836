"""Own data and edits, in projects that no other test uses: a file of their own, since a worker gets whole files."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from tests import forks
from tests.conftest import write_pictures
from tests.test_dvc import copy_project, run, set_params

pytestmark = pytest.mark.slow


def test_own_pictures_without_classes_are_trained_on_and_nothing_else(tmp_path: Path) -> None:
    copy_project(tmp_path)
    set_params(tmp_path, {"metrics.images.sampling.count": 50, "metrics.images.kid_subset_size": 20})
    yaml = YAML()
    values = yaml.load(tmp_path / "params.yaml")
    del values["models"]["gan"], values["models"]["flow_matching"], values["runs"]["gan"]  # one run takes less time
    yaml.dump(values, tmp_path / "params.yaml")
    kept = tmp_path / "reports" / "runs" / "transformer" / "metrics.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    own = tmp_path / "mine"
    write_pictures(own / "all", 200, side=12)
    output = run(tmp_path, "python", "-m", "pipeline", "own", "mine", "folders=none", "--steps", "3")
    ran = re.findall(r"^(\S+): done in", output, re.MULTILINE)
    assert {stage.partition("@")[2] for stage in ran} == {"", "mine", "mine-rotation", "mine-vae"}
    assert "mine-vae: samples and numbers in reports/runs/mine-vae" in output
    metrics = json.loads((tmp_path / "reports" / "runs" / "mine-vae" / "metrics.json").read_text())
    assert metrics["fid_mine-rotation"] > 0
    assert metrics["isc_mine-rotation"] == 1
    assert "test_accuracy" in json.loads((tmp_path / "reports" / "networks" / "mine-rotation.json").read_text())
    assert kept.exists()
    assert "no report, because vae, transformer have no results here" in output


def test_a_further_picture_runs_fetch_and_prepare_of_the_pictures_alone(tmp_path: Path) -> None:
    copy_project(tmp_path)
    set_params(tmp_path, {"data.images.source": "image_folder"})
    pictures = tmp_path / "data" / "own" / "pictures"
    for number in range(60):
        (pictures / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(pictures / "ab"[number % 2] / f"{number}.png")
    targets = ("prepare@images", "prepare@text")
    run(tmp_path, "dvc", "repro", *targets)
    Image.new("L", (4, 4), 200).save(pictures / "a" / "new.png")
    output = run(tmp_path, "dvc", "repro", *targets)
    assert re.findall(r"Running stage '(.*)'", output) == ["fetch@images", "prepare@images"]


def test_params_that_change_while_a_stage_runs_are_not_certified_and_its_training_is_kept(tmp_path: Path) -> None:
    copy_project(tmp_path)
    set_params(tmp_path, {"models.vae.steps": 200})
    text = (tmp_path / "params.yaml").read_text()
    with (tmp_path / "output").open("w+") as output:
        dvc = subprocess.Popen(
            ["dvc", "repro", "train@vae"], cwd=tmp_path, env=forks.environment(), stdout=output, stderr=output
        )
        while dvc.poll() is None and not list(tmp_path.glob(".state/train-vae/*/record/run.json")):
            time.sleep(0.05)
        set_params(tmp_path, {"models.vae.learning_rate": 2e-3, "models.gan.steps": 7})
        assert dvc.wait() != 0
        output.seek(0)
        changed = "train@vae: changed while it ran: params.yaml: models.vae.learning_rate (0.001, now 0.002); "
        assert changed in output.read()
    assert "train@vae" not in (tmp_path / "dvc.lock").read_text()
    (tmp_path / "params.yaml").write_text("# a comment\n" + text)
    assert "resuming at step 200 of 200" in run(tmp_path, "dvc", "repro", "train@vae")
    assert "up to date" in run(tmp_path, "dvc", "status", "train@vae")
