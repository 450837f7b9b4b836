"""Modes of images whose channels are labelled apart, by a network whose answers are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError
from pipeline.data.stacked_mnist import stack
from pipeline.evidence.features import Evidence, Sampling
from pipeline.metrics.modes import Config, compute, label, measure, spread

CONFIG = Config(sampling=Sampling(count=100, sets=1, importance_samples=1))


class Brightness(nn.Module):
    """Labels a one-channel image by its brightest pixel's value over 25: ten classes."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.size(1) == 1
        levels = images.flatten(1).amax(dim=1) // 25
        return levels.float()[:, None], nn.functional.one_hot(levels.long(), 10).float()


def make_digits(count: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) of class N % 10, as Brightness sees it."""
    labels = torch.arange(count) % 10
    return (labels * 25 + 3).byte().view(-1, 1, 1, 1).repeat(1, 1, 8, 8), labels


def test_a_mode_is_the_class_that_the_data_source_gives_a_stack() -> None:
    pictures, classes = stack(*make_digits(50), 300, torch.Generator().manual_seed(0))
    modes, total = label(Brightness()(spread(pictures))[1], pictures)
    assert total == 1000
    assert torch.equal(modes, classes)


def test_count_and_kl_of_known_histograms() -> None:
    everywhere = measure(torch.arange(1000).repeat(26), 1000)
    assert everywhere == {"modes_covered": 1000, "mode_kl_nats": pytest.approx(0, abs=1e-12)}
    # Uniform over a quarter of the modes is log 4 from uniform.
    assert measure(torch.arange(250), 1000) == {"modes_covered": 250, "mode_kl_nats": pytest.approx(math.log(4))}


def test_uniform_draws_have_the_kl_of_their_count() -> None:
    modes = torch.randint(1000, (26_000,), generator=torch.Generator().manual_seed(0))
    # (K - 1) / 2N, the mean of the chi-squared statistic that 2N KL tends to; its standard deviation is 0.00086
    assert measure(modes, 1000)["mode_kl_nats"] == pytest.approx(999 / 52_000, abs=0.003)


def test_generated_sets_stand_beside_the_real_images() -> None:
    generator = torch.Generator().manual_seed(0)
    test = stack(*make_digits(50), 200, generator)[0]
    reds = stack(*make_digits(50), 200, generator)[0]
    reds[:, 0] = 228
    values = compute(Evidence([test, reds], test, [test], {"digits": Brightness()}), CONFIG)
    assert values["samples"] == [200]
    assert values["modes_covered_digits"][0] == values["modes_covered_digits_real"][0]
    assert values["mode_kl_nats_digits"][0] == pytest.approx(values["mode_kl_nats_digits_real"][0])
    assert values["modes_covered_digits"][1] <= 100  # one red digit is left
    assert values["mode_kl_nats_digits"][1] > math.log(10)


def test_a_run_without_a_network_is_refused() -> None:
    pictures = stack(*make_digits(50), 100, torch.Generator())[0]
    with pytest.raises(ArtifactError, match="expected a feature network that labels the channels, got none"):
        compute(Evidence([pictures], pictures, [pictures]), CONFIG)


def test_more_modes_than_can_be_counted_are_refused() -> None:
    class Many(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros(len(images), 1), torch.zeros(len(images), 1008)

    pictures = stack(*make_digits(50), 100, torch.Generator())[0]
    with pytest.raises(ArtifactError, match="expected at most 1000000 modes, 1008 classes in each of 3 channels"):
        compute(Evidence([pictures], pictures, [pictures], {"inception": Many()}), CONFIG)
