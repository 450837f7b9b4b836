"""The feature network for pictures without classes: it learns which side is up."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts import ArtifactError
from pipeline.batches import Rows
from pipeline.evidence.features import extract
from pipeline.kinds.images import make_fields
from pipeline.layers.features import FEATURES
from pipeline.metrics import images as metric
from pipeline.networks.rotation import Config, Model, load_features, measure_accuracy, turn
from pipeline.training import fit
from pipeline.weights import save_model
from tests.metrics.test_image_metrics import CONFIG

SPEC = make_fields((1, 8, 8), 1)


def make_config(**changes: Any) -> Config:
    values: dict[str, Any] = {"network": "rotation", "data": "x", "seed": 0, "width": 4, "steps": 60, "batch_size": 32}
    return Config.model_validate(values | {"learning_rate": 1e-2, "weight_decay": 0.0} | changes)


def draw_skies(count: int) -> torch.Tensor:
    """Noise below a bright upper half: which side is up can be seen."""
    images = torch.randint(128, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    images[:, :, :4] += 127
    return images


def test_it_learns_which_side_is_up_without_labels_and_nothing_of_noise(tmp_path: Path) -> None:
    config = make_config()
    model = Model(config, SPEC, seed=0)
    fit(model, Rows({"images": draw_skies(64)}), steps=config.steps, batch_size=32, seed=0)
    save_model(tmp_path, "rotation", model, config, SPEC)
    network: Any = load_features(tmp_path)
    noise = torch.randint(256, (200, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert measure_accuracy(network, {"images": draw_skies(50)}) == 1
    assert measure_accuracy(network, {"images": noise}) == pytest.approx(0.25, abs=0.1)  # of 800 answers
    found = extract(network, noise)
    assert (found.features.shape, found.logits.shape) == ((200, FEATURES), (200, 1))
    assert metric.score_classes(found.logits, CONFIG)["isc"] == pytest.approx(1)


def test_a_picture_is_turned_by_the_quarters_that_are_asked_for() -> None:
    image = torch.arange(4).view(1, 1, 2, 2)  # 0 1 / 2 3, whose left turn is 1 3 / 0 2
    turned = turn(image.expand(4, 1, 2, 2), torch.arange(4)).flatten(1).tolist()
    assert turned == [[0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0], [2, 0, 3, 1]]


def test_pictures_that_are_not_square_are_refused() -> None:
    with pytest.raises(ArtifactError, match="turns pictures by 90 degrees: expected square ones, got 8x16"):
        Model(make_config(), make_fields((1, 8, 16), 1), seed=0)
