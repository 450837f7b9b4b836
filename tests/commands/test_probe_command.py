"""`pipeline probe`: a table of what features tell by few labels, of networks and of trained runs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import artifacts, params, plugins
from pipeline.__main__ import main
from pipeline.commands import probe
from pipeline.kinds import read_fields
from pipeline.stages import networks, train
from pipeline.weights import save_model
from tests.conftest import ROOT


def test_a_row_for_the_raw_values_and_each_name_whose_features_its_model_goes_on_from(
    workdir: Path,
    tiny: None,
    edit_params: Callable[..., None],
    digits: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del tiny
    shutil.copytree(digits, workdir / "data")
    edit_params({"runs.gan.changes": {"conditional": False}, "networks.classifier.probe": []})
    networks.main("classifier")
    train.main("vae")
    train.main("gan")
    settings = params.load()
    values = artifacts.read_split("images", "test")["images"][:8]
    with torch.inference_mode():
        vae: Any = probe.find_encoder("vae", settings)
        model = vae.network
        shown = model.backbone.from_levels(model.kept.show(vae.find(model, values)), model.spec)
        assert torch.equal(shown, model.reconstruct(values, {}))
        gan: Any = probe.find_encoder("gan", settings)
        model = gan.network
        state = torch.load(artifacts.RUNS / "gan" / "record" / "state.ckpt", weights_only=True)["state_dict"]
        assert torch.equal(model.discriminator.head.weight, state["discriminator.head.weight"])
        logits = model.discriminator(model.backbone.to_unit(values, model.spec))
        assert torch.equal(model.discriminator.head(gan.find(model, values)).squeeze(1), logits)
    capsys.readouterr()
    assert main(["probe", "classifier", "vae", "gan", "--labels", "2,8", "--draws", "2", "--tune"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:-1]]
    assert rows[0] == ["features", "numbers", "all labels", "20 labels", "80 labels"]
    names = ["classifier", "classifier, fine-tuned", "vae", "vae, fine-tuned", "gan", "gan, fine-tuned"]
    assert [row[0] for row in rows[2:]] == ["raw images", *names]
    latent = str(settings.models["vae"].latent)  # type: ignore[attr-defined]
    last = str(model.discriminator.head.in_features)
    assert [row[1] for row in rows[2:]] == ["784", "128", "128", latent, latent, last, last]
    assert [row[2] for row in rows[2:]] == ["no", "yes", "yes", "no", "no", "no", "no"]
    means = {row[0]: [float(cell.split(" ± ")[0]) for cell in row[3:]] for row in rows[2:]}
    assert means["classifier"][0] > means["raw images"][0]
    assert means["raw images"][1] > means["raw images"][0]
    assert means["vae, fine-tuned"][1] > means["vae"][1]
    assert lines[-1] == "accuracy on the test split of images: mean and standard error over 2 draws of the labels"

    record = artifacts.RUNS / "gan" / "record" / "run.json"
    about = artifacts.read_json(record)
    about["config"]["model"]["steps"] = 0  # as of a run that keeps weights from outside, which have no discriminator
    artifacts.write_json(record, about)
    assert main(["probe", "gan"])
    assert "runs.gan: its training has kept no discriminator" in capsys.readouterr().err
    config = settings.models["vae"].model_copy(update={"conditional": True})
    fields = read_fields("images")
    save_model(
        artifacts.RUNS / "vae" / "model", "vae", plugins.load("models", "vae").Model(config, fields, 0), config, fields
    )
    assert main(["probe", "vae"])
    assert "runs.vae: expected a VAE with conditional false" in capsys.readouterr().err


def test_data_without_classes_or_with_too_few_labels_are_refused() -> None:
    for labels, counts, said in (
        ({}, [1], "data.pets: expected examples of two classes or more, which a probe learns to tell, got 0"),
        ({"labels": torch.zeros(9)}, [1], "data.pets: expected examples of two classes or more"),
        ({"labels": torch.arange(9) % 2}, [1, 5], "--labels: expected at most 4 per class, as data.pets has"),
    ):
        with pytest.raises(artifacts.ArtifactError, match=said):
            probe.require_labels("pets", labels, counts)


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ("nothing", "no feature network or run nothing; params.yaml has classifier, listener, gan, vae"),
        ("transformer", "runs.transformer: the model transformer gives no features; its file defines no find_features"),
        ("classifier listener", "listener: expected the data of classifier, images, got speech"),
        ("vae --labels 1,0", "expected numbers from 1 on with commas between them, such as 1,5,10, got '1,0'"),
        ("vae --draws 1", "expected a number from 2 on, got '1'"),
    ],
)
def test_what_has_no_features_is_refused_before_anything_is_read(
    arguments: str, refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    try:
        status = main(["probe", *arguments.split()])
    except SystemExit as error:
        status = int(error.code or 0)
    assert status
    assert refusal in capsys.readouterr().err
