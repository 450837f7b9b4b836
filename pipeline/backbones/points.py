"""Perceptrons for points in D dimensions; those of a GAN have four hidden layers, and some see points magnified.

Dimensions: B batch, D dimensions of a point.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError
from pipeline.kinds.points import Spec
from pipeline.layers.conditioning import Condition, modulate

PICTORIAL = False
HIDDEN_LAYERS = 4
CELL = 0.0  # points are not rounded
# Networks learn coarse functions first (Rahaman et al. 2019, "spectral bias"), and modes may be a hundredth of the
# points' range wide: the discriminator sees them as through a magnifying glass.
MAGNIFICATION = 8.0


def to_unit(values: Tensor, spec: Spec) -> Tensor:
    """Return points as they are."""
    del spec
    return values


def from_unit(values: Tensor, spec: Spec) -> Tensor:
    """Return points as they are."""
    del spec
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


def to_continuous(points: Tensor, spec: Spec, generator: torch.Generator) -> Tensor:
    """Return points as they are."""
    del spec, generator
    return points


def from_continuous(values: Tensor, spec: Spec) -> Tensor:
    """Return points as they are."""
    del spec
    return values


def find_shape(spec: Spec) -> tuple[int, ...]:
    """Return the shape (D,) of a point."""
    return (spec.dimensions,)


class Velocity(nn.Module):
    """Maps points (B, D), times, spans and labels (B,) to velocities (B, D), through hidden layers that these scale."""

    def __init__(self, dimensions: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.condition = Condition(width, classes)
        self.enter = nn.Linear(2 * dimensions, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.modulation = nn.Linear(width, 2 * width * layers)
        self.leave = nn.Linear(width, dimensions)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, times: Tensor, spans: Tensor, labels: Tensor | None) -> Tensor:
        """Return velocities (B, D)."""
        scales = self.modulation(self.condition(times, spans, labels)).unflatten(1, (-1, 2, self.enter.out_features))
        hidden = self.enter(torch.cat([x, MAGNIFICATION * x], dim=1))
        hidden = F.silu(modulate(hidden, scales[:, 0, 0], scales[:, 0, 1]))
        for index, layer in enumerate(self.layers, 1):
            hidden = F.silu(modulate(layer(hidden), scales[:, index, 0], scales[:, index, 1]))
        velocity: Tensor = self.leave(hidden)
        return velocity


def require_velocity(name: str, width: int, spec: Spec) -> None:
    """Refuse a network that points have not.

    Raises:
        ArtifactError: with the one that they have.
    """
    del width, spec
    if name != "perceptron":
        msg = f"backbone: expected perceptron for points, got {name}"
        raise ArtifactError(msg)


def make_velocity(name: str, width: int, blocks: int, spec: Spec, classes: int) -> nn.Module:
    """Return a network from points, times, spans and labels to velocities; 0 classes: no labels."""
    del name
    return Velocity(spec.dimensions, width, blocks, classes)
