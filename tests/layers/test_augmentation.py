"""Differentiable augmentation against shifts, areas and means that can be written out."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from pipeline.layers import augmentation
from pipeline.layers.augmentation import (
    AdaptiveAugmentation,
    change_colour,
    cut_out,
    pick_augmentation,
    translate,
    turn_and_scale,
)
from pipeline.layers.blocks import shift_images
from pipeline.randomness import WHOLE


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images(generator: torch.Generator) -> torch.Tensor:
    return torch.rand(64, 3, 16, 16, generator=generator) * 2 - 1


def test_without_policies_images_stay_and_nothing_is_drawn(images: torch.Tensor, generator: torch.Generator) -> None:
    state = generator.get_state()
    assert pick_augmentation([])(images, generator, WHOLE) is images
    assert torch.equal(generator.get_state(), state)


def test_translation_moves_by_whole_pixels_up_to_an_eighth_and_fills_with_black(generator: torch.Generator) -> None:
    images = torch.full((200, 1, 16, 16), -1.0)
    images[:, :, 8, 8] = 1.0
    moved = translate(images, generator)
    places = (moved == 1).nonzero()
    assert len(places) == 200
    assert {int(shift) for shift in (places[:, 2:] - 8).flatten()} == {-2, -1, 0, 1, 2}
    bright = torch.full((200, 1, 16, 16), 1.0)
    assert set(translate(bright, generator).unique().tolist()) == {-1.0, 1.0}


def test_a_shift_is_the_same_for_all_channels(images: torch.Tensor, generator: torch.Generator) -> None:
    grey = images[:, :1].expand(-1, 3, -1, -1)
    moved = shift_images(grey, 2, generator)
    assert torch.equal(moved[:, 0], moved[:, 2])


def test_cutout_blanks_a_rectangle_of_at_most_half_the_sides(generator: torch.Generator) -> None:
    holes = (cut_out(torch.ones(500, 1, 16, 16), generator) == 0).squeeze(1)
    rows, columns = holes.any(dim=2).sum(dim=1), holes.any(dim=1).sum(dim=1)
    assert int(rows.max()) == int(columns.max()) == 8  # whole rectangles, and cut ones at the border
    assert int(rows.min()) == int(columns.min()) == 4
    assert torch.equal(holes.sum(dim=(1, 2)), rows * columns)


def test_colour_changes_brightness_saturation_and_contrast_within_their_ranges(
    images: torch.Tensor, generator: torch.Generator
) -> None:
    changed = change_colour(images, generator)
    shift = (changed - images).mean(dim=(1, 2, 3))  # saturation and contrast keep the mean
    assert float(shift.abs().max()) <= 0.5
    assert float(shift.std()) > 0.2
    grey, before = (part.mean(dim=1) for part in (changed, images))
    contrast = grey.std(dim=(1, 2)) / before.std(dim=(1, 2))
    assert 0.5 <= float(contrast.min()) < float(contrast.max()) <= 1.5
    colours = [(part - part.mean(dim=1, keepdim=True)).std(dim=(1, 2, 3)) for part in (changed, images)]
    saturation = colours[0] / colours[1] / contrast
    assert 0 <= float(saturation.min()) < 0.3
    assert 1.7 < float(saturation.max()) <= 2.001


def test_gradients_pass_through_every_policy(images: torch.Tensor, generator: torch.Generator) -> None:
    images.requires_grad_(True)
    pick_augmentation(["translation", "cutout", "colour"])(images, generator, WHOLE).square().sum().backward()
    assert images.grad is not None
    assert float((images.grad != 0).float().mean()) > 0.5


def test_turns_and_scales_are_those_of_torchvision(generator: torch.Generator) -> None:
    images = torch.rand(6, 1, 12, 20, generator=generator) * 2 - 1
    state = generator.get_state()
    found = turn_and_scale(images, generator)
    generator.set_state(state)
    angles, scales = torch.rand(2, 6, generator=generator)
    for image, result, angle, scale in zip(images, found, (2 * angles - 1) * 15, 1.25 ** (1 - 2 * scales), strict=True):
        expected = affine(
            image + 1,
            -float(angle),
            [0, 0],
            1 / float(scale),
            [0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        assert (result + 1 - expected).abs().max() < 1e-4


def test_second_derivatives_pass_through_turns(images: torch.Tensor, generator: torch.Generator) -> None:
    images.requires_grad_(True)
    (gradient,) = torch.autograd.grad(turn_and_scale(images, generator).square().sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_an_adaptive_augmentation_changes_the_share_of_images_that_its_probability_says(
    generator: torch.Generator,
) -> None:
    images = torch.rand(2000, 1, 4, 4, generator=generator)
    adaptive = AdaptiveAugmentation(["cutout", "colour"], 0.6, 1000)
    for probability, expected in ((0.0, 0.0), (0.3, 1 - 0.7**2), (1.0, 1.0)):
        adaptive.probability.fill_(probability)
        changed = (adaptive(images, generator, WHOLE) != images).flatten(1).any(dim=1).float().mean()
        assert changed == pytest.approx(expected, abs=0.04)


def test_the_probability_follows_the_overfitting_at_the_speed_asked_for() -> None:
    adaptive = AdaptiveAugmentation(["cutout"], 0.6, 1000)
    for _ in range(10):
        adaptive.adapt(torch.tensor(0.9), 32)
    assert adaptive.probability.item() == pytest.approx(0.32)
    for _ in range(30):
        adaptive.adapt(torch.tensor(0.9), 32)
    assert adaptive.probability.item() == pytest.approx(augmentation.MOST)
    adaptive.adapt(torch.tensor(0.5), 32)
    assert adaptive.probability.item() == pytest.approx(augmentation.MOST - 0.032)
    for _ in range(60):
        adaptive.adapt(torch.tensor(-1.0), 32)
    assert adaptive.probability.item() == 0
