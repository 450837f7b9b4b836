"""gaussians: points of an equal mixture of Gaussians on a ring or a grid, for which mode coverage has a right answer.

The rings (8 modes) and grids (25 modes) of Srivastava et al. 2017 (VEEGAN) and Lin et al. 2018 (PacGAN), scaled into
[-1, 1]: a deviation of 0.01 is theirs on the ring of radius 1, 0.0125 theirs on the grid from -4 to 4 (0.05).
"""

import math
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.kinds import FieldSpec
from pipeline.kinds.points import PointConfig, Points, make_fields
from pipeline.randomness import make_generator, normal

LICENCE = "Apache 2.0"
SHARES = {"train": 1.0, "validation": 0.2, "test": 0.2}


class Config(PointConfig):
    """Where the modes lie."""

    source: Literal["gaussians"]
    layout: Literal["ring", "grid"] = Field(description="modes on a circle of radius 1, or on a square grid in [-1, 1]")
    modes: int = Field(ge=2, description="Gaussians; a square number for the grid")
    deviation: float = Field(gt=0, description="standard deviation of each, in each of the two dimensions")

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.layout == "grid" and math.isqrt(self.modes) ** 2 != self.modes:
            msg = f"modes must be a square number for layout grid, got {self.modes}"
            raise ValueError(msg)
        return self


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the fields of the points."""
    return make_fields(2, config.modes)


def fetch(folder: Path, config: Config) -> None:
    """Bring nothing: the points are drawn by seed."""
    del folder, config


def prepare(raw: Path, config: Config) -> Points:
    """Draw each split by its own generator, the modes in equal numbers up to one."""
    del raw
    modes = place_modes(config)
    splits = {}
    for name, share in SHARES.items():
        generator = make_generator(config.data_seed, name)
        count = round(config.count * share)
        labels = torch.arange(count)[torch.randperm(count, generator=generator)] % config.modes
        splits[name] = modes[labels] + config.deviation * normal(count, 2, generator=generator), labels
    return Points(splits, modes, config.deviation)


def place_modes(config: Config) -> Tensor:
    """Return the means, float32 (K, 2)."""
    if config.layout == "grid":
        side = torch.linspace(-1, 1, math.isqrt(config.modes))
        return torch.cartesian_prod(side, side)
    angles = torch.arange(config.modes) * (2 * math.pi / config.modes)
    return torch.stack([angles.cos(), angles.sin()], dim=1)
