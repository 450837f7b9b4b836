"""Convolutions for images: of a GAN (Radford et al. 2016, "DCGAN") and of the classifier, sized by the image's shape.

A generator starts at 7x7 for 28x28 and doubles the side; a discriminator halves it by stride-2 convolutions.

Dimensions: B batch, C H W image.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from pipeline.artifacts import ArtifactError
from pipeline.kinds.images import Spec
from pipeline.layers.blocks import from_bytes, shift_images, to_bytes

PICTORIAL = True
to_unit = from_bytes
from_unit = to_bytes
shift = shift_images


def find_smallest(spec: Spec) -> tuple[int, int, int]:
    """Return (halvings, height, width) of the smallest feature map: 28 -> 7, 32 -> 8, 64 -> 8.

    Raises:
        ArtifactError: if a side cannot be halved evenly down to 8 or less; with the nearest sides that can.
    """
    height, width = spec.shape[1:]
    smallest = halve(height, width)
    if smallest is None:
        longest = max(height, width)
        fit = [side for side in range(4, 2 * longest + 8) if halve(side, side)]
        near = sorted(sorted(fit, key=lambda side: abs(side - longest))[:2])
        msg = f"image sides must halve evenly, down to 2 to 8, got {height}x{width}; {near[0]} or {near[1]} would do"
        raise ArtifactError(msg)
    return smallest


def halve(height: int, width: int) -> tuple[int, int, int] | None:
    """Return how often both sides halve evenly down to 8 or less, and what is left of them; None if they do not."""
    halvings = 0
    while not halvings or max(height, width) > 8:
        if height % 2 or width % 2 or min(height, width) < 4:
            return None
        height, width, halvings = height // 2, width // 2, halvings + 1
    return halvings, height, width


def require_generator(spec: Spec) -> None:
    """Refuse the images that find_smallest refuses."""
    find_smallest(spec)


def make_generator(spec: Spec, inputs: int, width: int, full_width: int) -> nn.Sequential:
    """Return layers from (B, inputs) to images in [-1, 1], (B, C, H, W)."""
    halvings, height, side = find_smallest(spec)
    channels = [width * 2**index for index in range(halvings)][::-1]  # 128, 64 for 28x28
    layers = [nn.Linear(inputs, channels[0] * height * side), nn.Unflatten(1, (channels[0], height, side))]
    for before, after in pairwise(channels):
        layers += [nn.BatchNorm2d(before), nn.LeakyReLU(0.2), double_side(before, after, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
    if full_width:
        layers += [double_side(width, full_width, bias=False), nn.BatchNorm2d(full_width), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(full_width, spec.shape[0], 3, padding=1), nn.Tanh()]
    else:
        layers += [double_side(width, spec.shape[0], bias=True), nn.Tanh()]
    return nn.Sequential(*layers)


def make_discriminator(
    spec: Spec, width: int, normalize: Callable[[nn.Module], nn.Module]
) -> tuple[nn.Sequential, int]:
    """Return layers from images (B, C, H, W) in [-1, 1] to features (B, F), and F."""
    halvings, height, side = find_smallest(spec)
    channels = [spec.shape[0], *(width * 2**index for index in range(halvings + 1))]
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [normalize(nn.Conv2d(before, after, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten()), channels[-1] * (height // 2) * (side // 2)  # 3x3 for 28x28


def double_side(before: int, after: int, *, bias: bool) -> nn.ConvTranspose2d:
    """Return the transposed 5x5 convolution that doubles height and width."""
    return nn.ConvTranspose2d(before, after, 5, stride=2, padding=2, output_padding=1, bias=bias)


def require_features(spec: Spec) -> None:
    """Refuse images that the classifier cannot halve three times.

    Raises:
        ArtifactError: if a side is shorter than 8 pixels.
    """
    if min(spec.shape[1:]) < 8:
        msg = f"the classifier halves an image three times: sides must be 8 or more, got {spec.shape[1:]}"
        raise ArtifactError(msg)


def make_features(spec: Spec, width: int) -> tuple[nn.Sequential, int]:
    """Return the classifier's layers from images (B, C, H, W) in [-1, 1] to (B, F), and F."""
    require_features(spec)
    layers: list[nn.Module] = []
    for before, after in ((spec.shape[0], width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten()), 4 * width * (spec.shape[1] // 8) * (spec.shape[2] // 8)
