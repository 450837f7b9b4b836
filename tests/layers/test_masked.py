"""The masked convolution as a prior of codes: chances against sums over all codes, what it sees, and its draws."""

import itertools

import torch

from pipeline.layers.masked import REACH, MaskedPrior
from pipeline.layers.quantization import from_codes

LEVELS = torch.tensor([3, 2])  # 6 codes


def make_prior(size: tuple[int, int], blocks: int = 2) -> MaskedPrior:
    prior = MaskedPrior(2, 6, size, 8, blocks)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return prior


def list_codes(places: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(6), repeat=places)))


@torch.no_grad()
def test_the_chances_of_all_images_of_codes_have_a_sum_of_one() -> None:
    nats = make_prior((2, 2)).nats(list_codes(4), LEVELS).sum(dim=1)  # 1,296 images
    torch.testing.assert_close((-nats).exp().sum(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-5)
    assert nats.std() > 0.5


@torch.no_grad()
def test_a_new_prior_gives_every_code_the_same_chance() -> None:
    likely = MaskedPrior(2, 6, (2, 3), 8, 1)(torch.zeros(1, 2, 3, 2))
    torch.testing.assert_close(likely, torch.full((1, 6, 6), 1 / 6).log())


def test_a_code_is_predicted_from_those_before_it_and_from_all_that_are_near() -> None:
    prior = make_prior((4, 5), blocks=3)
    values = torch.rand(1, 4, 5, 2, requires_grad=True)
    for place in range(20):
        (gradient,) = torch.autograd.grad(prior(values)[0, place].square().sum(), values)
        seen = gradient.abs().sum(dim=(0, 3)).flatten() > 0
        assert not seen[place:].any()
        rows, columns = torch.arange(place) // 5, torch.arange(place) % 5
        near = ((rows - place // 5).abs() <= REACH) & ((columns - place % 5).abs() <= REACH)
        assert seen[:place][near].all()


@torch.no_grad()
def test_the_upper_rows_alone_have_the_same_chances() -> None:
    prior, values = make_prior((4, 3)), torch.rand(2, 4, 3, 2)
    torch.testing.assert_close(prior(values[:, :2]), prior(values)[:, :6])


def test_draws_have_the_chances_that_the_prior_gives_them_and_follow_from_their_numbers() -> None:
    prior = make_prior((2, 1))  # two rows
    uniform = torch.rand(6000, 2, generator=torch.Generator().manual_seed(0))
    codes = prior.draw(uniform, LEVELS)
    assert torch.equal(prior.draw(uniform[7:9], LEVELS), codes[7:9])  # whatever the other rows are
    with torch.no_grad():
        expected = 6000 * (-prior.nats(list_codes(2), LEVELS).sum(dim=1)).exp()
    found = (6 * codes[:, 0] + codes[:, 1]).bincount(minlength=36)
    assert ((found - expected).square() / expected).sum() < 70  # chi-square, 35: p = 0.0004


def test_the_gradient_of_a_code_s_nats_reaches_the_values_before_it() -> None:
    prior = make_prior((1, 2))
    values = from_codes(torch.tensor([[[1, 4]]]), LEVELS).requires_grad_()
    prior(values)[0, 1, 4].backward()
    step = 1e-3
    moved = values.detach().clone()
    moved[0, 0, 0, 0] += step
    with torch.no_grad():
        slope = (prior(moved)[0, 1, 4] - prior(values)[0, 1, 4]) / step
    assert values.grad is not None
    torch.testing.assert_close(values.grad[0, 0, 0, 0], slope, rtol=0.02, atol=1e-3)
