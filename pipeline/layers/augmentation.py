"""Differentiable augmentation of what a discriminator sees: always, or with a probability that adapts.

Dimensions: B batch, C H W image.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.layers.blocks import shift_images
from pipeline.randomness import WHOLE, Part, share

MOST = 0.8  # probability above which augmentations show in samples (Karras et al. 2020, figure 5)


def translate(images: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Tensor:
    """Move each image by up to an eighth of its sides, filling with -1."""
    height, width = images.shape[2:]
    moved = shift_images(images + 1, round(max(height, width) / 8), generator, part)
    return moved - 1


def cut_out(images: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Tensor:
    """Blank a rectangle of half the sides, centred anywhere in the image, with 0, the middle grey."""
    batch, _, height, width = images.shape
    device = images.device
    masks = []
    for side, shape in ((height, (batch, 1, height, 1)), (width, (batch, 1, 1, width))):

        def draw(count: int, side: int = side) -> Tensor:
            return torch.randint(side + 1, (count, 1), generator=generator, device=device)

        centre = share(draw, batch, part)
        distance = torch.arange(side, device=device) - centre + 0.5  # (B, side)
        masks.append((distance.abs() < side / 4).view(shape))
    return images * ~(masks[0] & masks[1])


def change_colour(images: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Tensor:
    """Add to all pixels -0.5 to 0.5, scale saturation by 0 to 2 and contrast by 0.5 to 1.5."""

    def draw(count: int) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator, device=images.device)

    brightness, saturation, contrast = (share(draw, len(images), part) for _ in range(3))
    images = images + brightness - 0.5
    for axes, factor in (((1,), 2 * saturation), ((1, 2, 3), contrast + 0.5)):
        mean = images.mean(dim=axes, keepdim=True)
        images = mean + (images - mean) * factor
    return images


def turn_and_scale(images: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Tensor:
    """Turn each image by up to 15 degrees each way and scale it by 0.8 to 1.25, bilinearly, filling with -1."""

    def draw(count: int) -> Tensor:
        return torch.rand(2, count, generator=generator, device=images.device)

    angle, scale = share(draw, len(images), part, dim=1)
    angle, scale = (2 * angle - 1) * math.radians(15), 1.25 ** (1 - 2 * scale)  # of where a pixel comes from
    cos, sin, none = angle.cos() * scale, angle.sin() * scale, torch.zeros_like(angle)
    ratio = images.size(2) / images.size(3)  # coordinates are -1 to 1 along either side
    matrices = torch.stack([cos, -sin * ratio, none, sin / ratio, cos, none], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


Augmentation = Callable[[Tensor, torch.Generator, Part], Tensor]
POLICIES: dict[str, Augmentation] = {
    "translation": translate,
    "cutout": cut_out,
    "colour": change_colour,
    "affine": turn_and_scale,
}


def pick_augmentation(names: Sequence[str]) -> Augmentation:
    """Return what changes images (B, C, H, W) in [-1, 1] at random, differentiably, each in its own way.

    Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training": `translation` by up to an eighth of
    the side, `cutout` of a square of half the side, `colour`: brightness, saturation and contrast. `affine`: small
    turns and scales.
    """
    chosen = [POLICIES[name] for name in names]

    def augment(images: Tensor, generator: torch.Generator, part: Part) -> Tensor:
        for policy in chosen:
            images = policy(images, generator, part)
        return images

    return augment


class AdaptiveAugmentation(nn.Module):
    """Changes an image by each policy with a probability that follows the discriminator's overfitting.

    Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (ADA). The probability is a buffer:
    a resumed training goes on with it.

    Args:
        names: of the policies.
        target: overfitting that is kept, such as 0.6.
        images: real images over which the probability rises from 0 to 1 at most.
    """

    probability: Tensor

    def __init__(self, names: Sequence[str], target: float, images: int) -> None:
        super().__init__()
        self.policies = [POLICIES[name] for name in names]
        self.target = target
        self.images = images
        self.register_buffer("probability", torch.zeros(()))

    def forward(self, images: Tensor, generator: torch.Generator, part: Part) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1], some of them changed."""

        def draw(count: int) -> Tensor:
            return torch.rand(count, 1, 1, 1, generator=generator, device=images.device)

        for policy in self.policies:
            changed = policy(images, generator, part)
            images = torch.where(share(draw, len(images), part) < self.probability, changed, images)
        return images

    def adapt(self, overfitting: Tensor, count: int) -> Tensor:
        """Move the probability towards the target, and return it.

        Args:
            overfitting: mean sign of the logits of real images, less those of fakes where the loss has no zero, a
                scalar in [-1, 1].
            count: real images that it is of.
        """
        change = (overfitting - self.target).sign() * (count / self.images)
        self.probability.add_(change).clamp_(0, MOST)
        return self.probability.clone()
