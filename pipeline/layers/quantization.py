"""Codes of few levels (Mentzer et al. 2024, "Finite scalar quantization: VQ-VAE made simple").

Each of L numbers is bounded by tanh and rounded to one of a few levels, so that every code can be used and there is no
codebook to learn. Departures: the levels of each number lie evenly from -1 to 1, whether they are odd or even in
number; and `draw` rounds at random, up or down, with chances that keep the mean (stochastic rounding). So an encoder is
a distribution over codes, whose entropy a bound on the likelihood counts.

Dimensions: L numbers of a code, K codes there are, M the most levels that a number has.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def quantize(z: Tensor, levels: Tensor) -> Tensor:
    """Round z (..., L), unbounded, to the nearest levels in [-1, 1]; the gradient is that of tanh.

    levels: how many levels each number has, int64 (L,), 2 or more.
    """
    bounded, half = z.tanh(), (levels - 1) / 2
    rounded = ((bounded + 1) * half).round() / half - 1
    return bounded + (rounded - bounded).detach()


def draw(z: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
    """Round z (..., L), unbounded, to the level below or above, in [-1, 1]; the gradient is that of tanh.

    The nearer level is the likelier one, so that the mean over draws is tanh(z), and the gradient of what is linear in
    the values is exact.

    levels: how many levels each number has, int64 (L,), 2 or more.
    """
    bounded, half = z.float().tanh(), (levels - 1) / 2
    place = (bounded + 1) * half
    below = place.floor()
    uniform = torch.rand(z.shape, generator=generator, device=z.device)
    rounded = (below + (uniform < place - below)) / half - 1
    return bounded + (rounded - bounded).detach()


def find_chances(z: Tensor, levels: Tensor, most: int) -> Tensor:
    """Return the chances with which `draw` rounds z (..., L) to each level, float32 (..., L, M).

    most: M, the largest of the levels; beyond a number's own levels its chances are 0.
    """
    place = (z.float().tanh() + 1) * ((levels - 1) / 2)
    return (1 - (place[..., None] - torch.arange(most, device=z.device)).abs()).clamp(min=0)


def join_chances(chances: Tensor, levels: Sequence[int]) -> Tensor:
    """Return the chances of all codes, (..., K), of independent numbers with chances (..., L, M)."""
    joint = chances[..., 0, : levels[0]]
    for number, count in enumerate(levels[1:], start=1):
        joint = (chances[..., number, :count, None] * joint[..., None, :]).flatten(-2)  # the last counts the most
    return joint


def to_codes(values: Tensor, levels: Tensor) -> Tensor:
    """Number the values (..., L) in [-1, 1] that are levels: int64 (...), below the product of the levels."""
    digits = ((values + 1) * ((levels - 1) / 2)).round().long()
    return (digits * (levels.cumprod(0) // levels)).sum(dim=-1)


def from_codes(codes: Tensor, levels: Tensor) -> Tensor:
    """Return the values (..., L) in [-1, 1] of codes, int64 (...)."""
    digits = codes[..., None] // (levels.cumprod(0) // levels) % levels
    return digits / ((levels - 1) / 2) - 1
