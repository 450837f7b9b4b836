"""stacked_mnist: three random MNIST digits as the red, green and blue channel of one image, 1000 classes.

The class is 100 r + 10 g + b, so the modes that a GAN drops can be counted (Metz et al. 2017; Srivastava et al. 2017).
The digits are split before they are stacked: no digit is in two splits, and the test images are made from MNIST's
test digits. The draw, with replacement, is a function of `split_seed` only. Reads MNIST's files.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.data import mnist
from pipeline.kinds import FieldSpec
from pipeline.kinds.images import ImageConfig, ImageSplits, make_fields
from pipeline.randomness import make_generator

LICENCE = mnist.LICENCE


class Config(ImageConfig):
    """How the digits are split and how many images are made of them."""

    source: Literal["stacked_mnist"]
    count: int = Field(default=60_000, ge=2, description="images of the training and validation splits together")
    test_count: int = Field(default=10_000, ge=1, description="images of the test split")


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the fields of the stacked digits."""
    del config
    return make_fields((3, 28, 28), 1000)


def fetch(folder: Path, config: Config) -> None:
    """Download MNIST."""
    del config
    mnist.download(folder)


def prepare(raw: Path, config: Config) -> ImageSplits:
    """Split the digits, and stack random triples within each split."""
    held_out = min(max(round(config.validation * config.count), 1), config.count - 1)
    counts = {"train": config.count - held_out, "validation": held_out, "test": config.test_count}
    digits = mnist.read(raw, config).splits
    splits = {
        name: stack(*digits[name], count, make_generator(config.split_seed, "stacked_mnist", name))
        for name, count in counts.items()
    }
    return ImageSplits(splits, classes=1000, names=[f"{label:03d}" for label in range(1000)])


def stack(images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `count` triples of digits uint8 (N, 1, H, W) with labels (N,): uint8 (count, 3, H, W), int64 (count,)."""
    chosen = torch.randint(len(images), (count, 3), generator=generator)
    return images[chosen].squeeze(2), labels[chosen] @ torch.tensor([100, 10, 1])
