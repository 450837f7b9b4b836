"""The linear probe: labels drawn fairly, chance on noise, no more than the features hold."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError
from pipeline.evidence.probe import draw_labels, measure_all, measure_probe, require, summarize


def test_each_draw_has_so_many_of_each_class_and_another_draw_has_others() -> None:
    labels = torch.arange(200) % 4
    first, second = (draw_labels(labels, 3, draw) for draw in (0, 1))
    assert labels[first].bincount().tolist() == [3, 3, 3, 3]
    assert torch.equal(first, draw_labels(labels, 3, 0))
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="class 0 has 50 examples, expected 51"):
        draw_labels(labels, 51, 0)


def test_features_that_are_the_class_give_all_and_noise_gives_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    known = torch.eye(4)[labels] + 0.01 * torch.randn(400, 4, generator=generator)
    noise = torch.randn(400, 4, generator=generator)
    for features, expected, width in ((known, 1.0, 1e-9), (noise, 0.25, 0.08)):
        found = measure_probe((features, labels), (features[200:], labels[200:]), 5, draws=3)
        assert np.mean(found) == pytest.approx(expected, abs=width)


def test_more_labels_help_on_real_digits() -> None:
    digits = load_digits()
    pixels, labels = torch.tensor(digits.data), torch.tensor(digits.target)
    means = [
        summarize(measure_probe((pixels[:1200], labels[:1200]), (pixels[1200:], labels[1200:]), count, draws=3))[0]
        for count in (1, 5)
    ]
    assert 0.4 < means[0] < means[1] < 0.95


def test_the_summary_is_mean_and_standard_error() -> None:
    mean, error = summarize([0.7, 0.8, 0.9])
    assert mean == pytest.approx(0.8)
    assert error == pytest.approx(0.1 / 3**0.5)


class Same(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.flatten(1), torch.zeros(len(images), 1)


class Blind(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(images), 2), torch.zeros(len(images), 1)


def test_features_and_raw_values_are_probed_with_the_same_labels() -> None:
    digits = load_digits()
    values, labels = torch.tensor(digits.data).view(-1, 1, 8, 8).byte(), torch.tensor(digits.target)
    values = values[..., 1::2, 1::2]  # a quarter of the pixels: probes of few features are fitted sooner
    splits = {
        "train": {"images": values[:600], "labels": labels[:600]},
        "test": {"images": values[600:900], "labels": labels[600:900]},
    }
    found = measure_all(Same(), "images", splits, [1, 2])
    assert list(found)[:2] == ["probe_10_labels_accuracy", "probe_10_labels_error"]
    for count in (10, 20):
        assert found[f"probe_{count}_labels_accuracy"] == found[f"raw_{count}_labels_accuracy"]
    blind = measure_all(Blind(), "images", splits, [1])
    assert blind["probe_10_labels_accuracy"] < 0.2 < found["raw_10_labels_accuracy"]


def test_more_labels_than_a_class_has_are_refused() -> None:
    train = {"labels": torch.tensor([0, 0, 0, 1, 1])}
    require([1, 2], train)
    require([], {})
    with pytest.raises(ArtifactError, match=r"probe: expected at most 2 labels per class, .* got 3"):
        require([1, 3], train)
    with pytest.raises(ArtifactError, match="at most 0 labels"):
        require([1], {})
