"""Perceptrons for points in D dimensions: four hidden layers each; the discriminator sees them magnified.

Dimensions: B batch, D dimensions of a point.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from pipeline.kinds.points import Spec

PICTORIAL = False
HIDDEN_LAYERS = 4
# Networks learn coarse functions first (Rahaman et al. 2019, "spectral bias"), and modes may be a hundredth of the
# points' range wide: the discriminator sees them as through a magnifying glass.
MAGNIFICATION = 8.0


def to_unit(values: Tensor) -> Tensor:
    """Return points as they are."""
    return values


def from_unit(values: Tensor) -> Tensor:
    """Return points as they are."""
    return values


def require_generator(spec: Spec) -> None:
    """Accept every set of points."""
    del spec


def make_generator(spec: Spec, inputs: int, width: int, full_width: int) -> nn.Sequential:
    """Return layers from (B, inputs) to points (B, D)."""
    del full_width
    return make_perceptron(inputs, width).append(nn.Linear(width, spec.dimensions))


def make_discriminator(
    spec: Spec, width: int, normalize: Callable[[nn.Module], nn.Module]
) -> tuple[nn.Sequential, int]:
    """Return layers from points (B, D) to features (B, width), and the width."""
    return Magnified(*make_perceptron(spec.dimensions, width, normalize)), width


class Magnified(nn.Sequential):
    """Layers that see their input magnified."""

    def forward(self, values: Tensor) -> Tensor:
        """Map points (B, D) to features."""
        return super().forward(MAGNIFICATION * values)


def make_perceptron(
    inputs: int, width: int, normalize: Callable[[nn.Module], nn.Module] = lambda layer: layer
) -> nn.Sequential:
    """Return the hidden layers of `width` units."""
    layers: list[nn.Module] = []
    for before, after in pairwise([inputs, *[width] * HIDDEN_LAYERS]):
        layers += [normalize(nn.Linear(before, after)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)
