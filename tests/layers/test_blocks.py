"""Differentiable augmentation against shifts, areas and means that can be written out."""

import pytest
import torch

from pipeline.layers.blocks import change_colour, cut_out, pick_augmentation, shift_images, translate
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
