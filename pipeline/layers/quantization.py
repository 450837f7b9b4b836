"""Codes of few levels (Mentzer et al. 2024, "Finite scalar quantization: VQ-VAE made simple").

Each of L numbers is bounded by tanh and rounded to one of a few levels, so that every code can be used and there is no
codebook to learn. Departure: the levels of each number lie evenly from -1 to 1, whether they are odd or even in number.
"""

from torch import Tensor


def quantize(z: Tensor, levels: Tensor) -> Tensor:
    """Round z (..., L), unbounded, to levels in [-1, 1]; the gradient is that of tanh.

    levels: how many levels each number has, int64 (L,), 2 or more.
    """
    bounded, half = z.tanh(), (levels - 1) / 2
    rounded = ((bounded + 1) * half).round() / half - 1
    return bounded + (rounded - bounded).detach()


def to_codes(values: Tensor, levels: Tensor) -> Tensor:
    """Number the values (..., L) in [-1, 1] that `quantize` gives: int64 (...), below the product of the levels."""
    digits = ((values + 1) * ((levels - 1) / 2)).round().long()
    return (digits * (levels.cumprod(0) // levels)).sum(dim=-1)


def from_codes(codes: Tensor, levels: Tensor) -> Tensor:
    """Return the values (..., L) in [-1, 1] of codes, int64 (...)."""
    digits = codes[..., None] // (levels.cumprod(0) // levels) % levels
    return digits / ((levels - 1) / 2) - 1
