"""`pipeline doctor metrics` on a small feature network; what a crash leaves behind is in test_leftovers.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import artifacts
from pipeline.__main__ import main
from pipeline.artifacts import NETWORKS, RUNS
from pipeline.commands import doctor
from pipeline.evidence.selftest import Check
from pipeline.metrics import points
from pipeline.stages import fetch, networks, prepare
from tests.conftest import squeeze


@pytest.mark.usefixtures("tiny", "prepared")
def test_the_metrics_of_a_trained_feature_network_hold_and_the_status_says_so(
    workdir: Path, edit_params: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_params({"networks.classifier.steps": 150, "networks.classifier.width": 8, "metrics.images.kid_subsets": 2})
    networks.main("classifier")
    capsys.readouterr()
    assert main(["doctor", "metrics"]) == 0
    lines = squeeze(capsys.readouterr().out).splitlines()
    assert lines[0] == "| classifier | expected | found | |"
    assert len(lines) > 7
    assert all(line.endswith("| ok |") for line in lines[2:] if line)
    (workdir / NETWORKS / "classifier" / "model.safetensors").unlink()
    assert main(["doctor", "metrics"]) == 1  # one message, no traceback
    assert "model.safetensors" in capsys.readouterr().err


def test_a_check_that_fails_is_said() -> None:
    text = doctor.format_checks(
        "net", [Check("identity", "0", "0", holds=True), Check("noise", "more", "less", holds=False)]
    )
    assert squeeze(text).splitlines()[2:4] == ["| identity | 0 | 0 | ok |", "| noise | more | less | **fails** |"]


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
        yaml.dump(values | {"networks": {}}, file)
    assert main(["doctor", "metrics"]) == 0
    assert capsys.readouterr().out == "params.yaml has no feature network: nothing to check\n"


def test_a_metric_of_any_run_that_depends_on_the_samples_order_is_said(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(workdir / "params.yaml")
    ring = {"source": "gaussians", "path": "x", "layout": "ring", "modes": 4, "deviation": 0.02, "count": 1000}
    values["data"] = {"ring": ring | {"data_seed": 0}}
    values["networks"] = {}
    values["metrics"] = {"points": {"sampling": {"count": 400, "sets": 1}, "deviations": 3.0}}
    values["models"] = {"gan": values["models"]["gan"]}
    values["runs"] = {"gan": values["runs"]["gan"] | {"data": "ring", "metric": "points", "network": "none"}}
    with (workdir / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    fetch.main("ring")
    prepare.main("ring")
    samples = artifacts.read_split("ring", "train")["points"][:400]
    folder = RUNS / "gan" / "samples"
    artifacts.write_tensors(folder / "generated.safetensors", {"0": samples[samples[:, 0].argsort()]})
    artifacts.seal(folder)
    assert main(["doctor", "metrics"]) == 0
    assert squeeze(capsys.readouterr().out).splitlines()[-2:] == [
        "| points, gan | 10 values unchanged | unchanged | ok |",
        "",
    ]
    monkeypatch.setattr(points, "shuffle", lambda values: values)  # the first 200 of 400, for as many real points
    assert main(["doctor", "metrics"]) == 1
    assert "log_density_nats" in capsys.readouterr().out


def test_a_folder_that_is_no_project_is_not_called_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("doctor", "sync", "ui"):
        assert main([command]) == 1
        assert capsys.readouterr().err == f"error: {tmp_path}/params.yaml: not found; run from the project's folder\n"
    assert list(tmp_path.iterdir()) == []
