"""The feature network: it learns the training split alone, and stays as it was saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.batches import Rows
from pipeline.kinds.images import make_fields as image_fields
from pipeline.layers.features import FEATURES
from pipeline.networks.classifier import Config, Model, load_features
from pipeline.stages import networks
from pipeline.training import fit
from pipeline.weights import choose_device, save_model

SPEC = image_fields((1, 8, 8), 4)


def make_config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "network": "classifier",
        "data": "images",
        "seed": 0,
        "width": 4,
        "steps": 60,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "shift": 0,
    }
    return Config.model_validate(values | changes)


def make_batch() -> dict[str, torch.Tensor]:
    images = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"images": images, "labels": torch.arange(16) % 4}


def test_one_batch_is_overfitted() -> None:
    config, batch = make_config(), make_batch()
    model = Model(config, SPEC, seed=0)
    before = functional.cross_entropy(model.eval()(batch["images"])[1], batch["labels"])
    fit(model.train(), Rows(batch), steps=config.steps, batch_size=16, seed=0)
    logits = model.eval()(batch["images"])[1]
    assert functional.cross_entropy(logits, batch["labels"]) < before / 10
    assert torch.equal(logits.argmax(dim=1), batch["labels"])


def test_saved_features_are_those_of_the_model_and_frozen(tmp_path: Path) -> None:
    config, images = make_config(), make_batch()["images"].to(choose_device())
    model = Model(config, SPEC, seed=3).eval().to(images.device)
    save_model(tmp_path, "classifier", model, config, SPEC)
    network = load_features(tmp_path)
    assert not network.training  # batch norm and dropout are at rest
    assert not any(parameter.requires_grad for parameter in network.parameters())
    found, expected = network(images), model(images)
    assert found[0].shape == (16, FEATURES)
    assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
    assert all(torch.equal(left, right) for left, right in zip(network(images), found, strict=True))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            image_fields((1, 8, 8), 1),
            "classes apart, which needs 2 or more, the data have 1; bring data of more classes",
        ),
        (image_fields((1, 7, 28), 2), r"sides must be 8 or more, got \(7, 28\)"),
    ],
)
def test_data_that_it_cannot_learn_are_refused(spec: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Model(make_config(), spec, seed=0)


@pytest.mark.usefixtures("tiny", "prepared")
def test_other_splits_than_the_training_split_change_no_bit_of_the_weights(
    workdir: Path, edit_params: Callable[..., None]
) -> None:
    edit_params({"networks.classifier.steps": 4})
    networks.main("classifier")
    weights = workdir / artifacts.NETWORKS / "classifier" / "model.safetensors"
    report = workdir / artifacts.REPORTS / "networks" / "classifier.json"
    bits, known = weights.read_bytes(), artifacts.read_json(report)
    manifest = artifacts.read_manifest("images")
    for split in ("validation", "test"):
        tensors = artifacts.read_split("images", split)
        tensors["images"] = tensors["images"].flip(-1)
        path = artifacts.PREPARED / "images" / f"{split}.safetensors"
        artifacts.write_tensors(path, tensors)
        manifest["splits"][split]["sha256"] = artifacts.digest(path)
    artifacts.write_json(artifacts.PREPARED / "images" / "manifest.json", manifest)
    networks.main("classifier")
    assert weights.read_bytes() == bits
    found = artifacts.read_json(report)
    assert [name for name in known if found[name] != known[name]] != []
