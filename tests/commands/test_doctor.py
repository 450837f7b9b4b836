"""`pipeline doctor metrics` on a small feature network; what a crash leaves behind is in test_leftovers.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.__main__ import main
from pipeline.artifacts import FEATURES
from pipeline.commands import doctor
from pipeline.evidence.selftest import Check
from pipeline.stages import features, fetch, prepare


@pytest.mark.usefixtures("tiny")
def test_the_metrics_of_a_trained_feature_network_hold_and_the_status_says_so(
    workdir: Path, edit_params: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_params({"features.classifier.steps": 150, "features.classifier.width": 8, "metrics.images.kid_subsets": 2})
    fetch.main("images")
    prepare.main("images")
    features.main("classifier")
    capsys.readouterr()
    assert main(["doctor", "metrics"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| classifier | expected | found | |"
    assert len(lines) > 7
    assert all(line.endswith("| ok |") for line in lines[2:] if line)
    (workdir / FEATURES / "classifier" / "model.safetensors").unlink()
    assert main(["doctor", "metrics"]) == 1  # one message, no traceback
    assert "model.safetensors" in capsys.readouterr().err


def test_a_check_that_fails_is_said() -> None:
    text = doctor.render("net", [Check("identity", "0", "0", holds=True), Check("noise", "more", "less", holds=False)])
    assert text.splitlines()[2:4] == ["| identity | 0 | 0 | ok |", "| noise | more | less | **fails** |"]


def test_params_without_what_is_checked_or_without_its_settings_are_said(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(workdir / "params.yaml")
    values["runs"] = {"transformer": values["runs"]["transformer"]}
    del values["metrics"]["images"]
    with (workdir / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    assert main(["doctor", "metrics"]) == 1
    assert "params.yaml: metrics.images: missing section" in capsys.readouterr().err
    with (workdir / "params.yaml").open("w") as file:
        yaml.dump(values | {"features": {}}, file)
    assert main(["doctor", "metrics"]) == 0
    assert capsys.readouterr().out == "params.yaml has no feature network: nothing to check\n"
