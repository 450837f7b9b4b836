"""Codes of few levels: every level and every code, the gradient, and the chances of random rounding."""

import itertools
import math

import pytest
import torch

from pipeline.layers.quantization import draw, find_chances, from_codes, join_chances, quantize, to_codes

LEVELS = torch.tensor([2, 3, 4, 8])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_a_sweep_meets_exactly_the_levels_evenly_from_minus_one_to_one(count: int) -> None:
    values = quantize(torch.linspace(-5, 5, 1001)[:, None], torch.tensor([count])).flatten()
    assert (values.diff() >= -1e-6).all()
    found = sorted({round(value, 5) for value in values.tolist()})
    assert found == pytest.approx([2 * level / (count - 1) - 1 for level in range(count)], abs=1e-5)


def test_a_value_goes_to_the_nearest_level_of_its_tanh() -> None:
    z = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    values = quantize(z, LEVELS)
    for place, count in enumerate(LEVELS.tolist()):
        grid = torch.tensor([2 * level / (count - 1) - 1 for level in range(count)])
        nearest = grid[(z[:, place, None].tanh() - grid).abs().argmin(dim=1)]
        torch.testing.assert_close(values[:, place], nearest, rtol=0, atol=1e-6)


def test_the_gradient_passes_the_rounding_as_that_of_tanh() -> None:
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    (quantize(z, LEVELS) * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights / z.detach().cosh().square())


def test_codes_and_values_are_one_to_one_and_all_can_be_reached() -> None:
    total = math.prod(LEVELS.tolist())
    codes = torch.arange(total)
    values = from_codes(codes, LEVELS)
    assert torch.equal(to_codes(values, LEVELS), codes)
    grids = [[2 * level / (count - 1) - 1 for level in range(count)] for count in LEVELS.tolist()]
    expected = {tuple(round(value, 5) for value in row) for row in itertools.product(*grids)}
    assert {tuple(round(value, 5) for value in row) for row in values.tolist()} == expected
    # An encoder reaches each of them, as the level's own tanh, or nearly so at the ends.
    reached = quantize((values * 0.95).atanh(), LEVELS)
    assert torch.equal(to_codes(reached, LEVELS), codes)


def test_codes_keep_the_shape_in_front() -> None:
    z = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    codes = to_codes(quantize(z, LEVELS), LEVELS)
    assert codes.shape == (3, 5)
    torch.testing.assert_close(from_codes(codes, LEVELS), quantize(z, LEVELS), rtol=0, atol=1e-6)


def test_random_rounding_goes_to_the_levels_next_to_a_number_as_often_as_their_chances_say() -> None:
    z = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    values = draw(z.expand(20_000, -1, -1), LEVELS, torch.Generator().manual_seed(1))
    chances = find_chances(z, LEVELS, 8)
    assert chances.shape == (20, 4, 8)
    for place, count in enumerate(LEVELS.tolist()):
        grid = torch.tensor([2 * level / (count - 1) - 1 for level in range(count)])
        found = ((values[..., place, None] - grid).abs() < 1e-5).double().mean(dim=0)  # (20, count)
        torch.testing.assert_close(found.sum(dim=1), torch.ones(20, dtype=torch.float64))  # nothing but levels
        torch.testing.assert_close(found, chances[:, place, :count].double(), rtol=0, atol=5 * 0.5 / 20_000**0.5)
        assert (chances[:, place, count:] == 0).all()
        mean = (chances[:, place, :count] * grid).sum(dim=1)
        torch.testing.assert_close(mean, z[:, place].tanh(), rtol=0, atol=1e-6)  # a draw is right in the mean
    assert ((chances > 0).sum(dim=2) <= 2).all()
    torch.testing.assert_close(chances.sum(dim=2), torch.ones(20, 4))


def test_random_rounding_stays_within_the_levels_at_their_ends() -> None:
    z = torch.tensor([[-50.0], [50.0]]).expand(2, 4)
    for seed in range(20):
        assert torch.equal(draw(z, LEVELS, torch.Generator().manual_seed(seed)), z.sign())
    torch.testing.assert_close(find_chances(z, LEVELS, 8).amax(dim=2), torch.ones(2, 4))


def test_the_gradient_passes_random_rounding_as_that_of_tanh() -> None:
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    (draw(z, LEVELS, torch.Generator().manual_seed(2)) * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights / z.detach().cosh().square())


def test_the_chances_of_codes_are_products_of_those_of_their_numbers() -> None:
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    chances = find_chances(z, LEVELS, 8)
    joint = join_chances(chances, LEVELS.tolist())
    values = from_codes(torch.arange(math.prod(LEVELS.tolist())), LEVELS)
    digits = ((values + 1) * (LEVELS - 1) / 2).round().long()  # (K, L)
    expected = torch.stack([chances[:, place, digits[:, place]] for place in range(4)]).prod(dim=0)
    torch.testing.assert_close(joint, expected)
    torch.testing.assert_close(joint.sum(dim=1), torch.ones(5))


def test_the_chances_of_many_levels_are_those_of_the_draws_too() -> None:
    levels = torch.tensor([4096])
    z = torch.linspace(-2, 2, 200_000)[:, None]
    values = draw(z, levels, torch.Generator().manual_seed(0))
    digits = ((values + 1) * 4095 / 2).round().long()
    chances = find_chances(z[:1000], levels, 4096).gather(2, digits[:1000, :, None])
    assert chances.min() > 0  # nothing is drawn that has no chance
    error = (values - z.tanh()) * 4095 / 2
    assert abs(error.mean()) < 5 * error.std() / 200_000**0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_chances_of_the_numbers_that_it_has(dtype: torch.dtype) -> None:
    z = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(find_chances(z, LEVELS, 8), find_chances(z.float(), LEVELS, 8))
    one, other = (draw(each, LEVELS, torch.Generator().manual_seed(0)) for each in (z, z.float()))
    assert torch.equal(one, other)
