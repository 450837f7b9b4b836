"""Networks for images: of a GAN (Radford et al. 2016, "DCGAN"), of the classifier and of flows, sized by the shape.

A generator starts at 7x7 for 28x28 and doubles the side; a discriminator halves it by stride-2 convolutions. The
velocity of a flow is a U-Net's or a transformer's.

Dimensions: B batch, C H W image.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError
from pipeline.kinds.images import Spec
from pipeline.layers.blocks import from_bytes, shift_images, to_bytes
from pipeline.layers.dit import HEAD, PATCH, DiT
from pipeline.layers.unet import GROUPS, UNet

BINARY = True
PICTORIAL = True
shift = shift_images
VELOCITIES = {"unet": (4, GROUPS), "dit": (PATCH, HEAD)}  # what sides and width must be multiples of
CELL = 2 / 256  # width of a grey level in [-1, 1]
LARGEST = 3.0  # standard deviations of noise that a network sees as such


def to_unit(images: Tensor, spec: Spec) -> Tensor:
    """Map uint8 images to float32 in [-1, 1]."""
    del spec
    return from_bytes(images)


def from_unit(images: Tensor, spec: Spec) -> Tensor:
    """Map float images in [-1, 1] to uint8."""
    del spec
    return to_bytes(images)


def to_levels(images: Tensor, spec: Spec) -> Tensor:
    """Return uint8 images as they are."""
    del spec
    return images


def from_levels(levels: Tensor, spec: Spec) -> Tensor:
    """Return uint8 images as they are."""
    del spec
    return levels


def require_multiple(spec: Spec, multiple: int) -> None:
    """Refuse images whose sides are not multiples of `multiple`.

    Raises:
        ArtifactError: with the nearest sides that are.
    """
    height, width = spec.shape[1:]
    if height % multiple or width % multiple:
        below = max(multiple, max(height, width) // multiple * multiple)
        near = f"{below} or {below + multiple} would do"
        msg = f"image sides must be multiples of {multiple}, got {height}x{width}; {near}"
        raise ArtifactError(msg)


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


def to_continuous(images: Tensor, spec: Spec, generator: torch.Generator) -> Tensor:
    """Map uint8 images to [-1, 1), each grey level evenly to its share of 1 / 128 (Theis et al. 2016, "dequantise").

    The density of what comes out bounds the probability of the grey levels: bits per dimension = 7 - log2 p / D.
    """
    del spec
    places = torch.rand(images.shape, generator=generator, device=images.device)
    return (images.float() + places) * CELL - 1


def from_continuous(values: Tensor, spec: Spec) -> Tensor:
    """Map values in [-1, 1) to the grey level that they belong to, uint8; values beyond to the nearest."""
    del spec
    return ((values + 1) / CELL).floor().clamp(0, 255).byte()


def find_shape(spec: Spec) -> tuple[int, ...]:
    """Return the shape (C, H, W) of an image."""
    return spec.shape


class Velocity(nn.Module):
    """Gives a network, besides x (B, C, H, W) at times t, the noise that x has if a pixel is of one of a few levels.

    Many pixels of images are black or white. Near the data the noise is a small part of x, which a network would have
    to magnify by as much as 1 / (1 - t): without this, likelihoods are poor. In deviations, at most about 3.
    """

    def __init__(self, network: nn.Module, levels: tuple[float, ...] = (CELL / 2 - 1, 1 - CELL / 2)) -> None:
        super().__init__()
        self.network = network
        self.levels = levels

    def forward(self, x: Tensor, times: Tensor, spans: Tensor, labels: Tensor | None) -> Tensor:
        """Return velocities (B, C, H, W)."""
        t = times.view(-1, 1, 1, 1)
        deviation = ((1 - t).square() + CELL**2 / 12).sqrt()  # of x around a pixel of one level
        noises = [(x - t * level) / deviation for level in self.levels]
        seen = torch.cat([x, *(LARGEST * torch.tanh(noise / LARGEST) for noise in noises)], dim=1)
        velocity: Tensor = self.network(seen, times, spans, labels)
        return velocity


def require_velocity(name: str, width: int, spec: Spec) -> None:
    """Refuse a network or a width that images have not, and sides that the network cannot cut up.

    Raises:
        ArtifactError: with what would do.
    """
    if name not in VELOCITIES:
        msg = f"backbone: expected {' or '.join(VELOCITIES)} for images, got {name}"
        raise ArtifactError(msg)
    side, multiple = VELOCITIES[name]
    if width % multiple:
        msg = f"width: expected a multiple of {multiple} with backbone {name}, got {width}"
        raise ArtifactError(msg)
    if any(size % side for size in spec.shape[1:]):
        below = max(side, max(spec.shape[1:]) // side * side)
        sizes = "x".join(map(str, spec.shape[1:]))
        msg = f"image sides must be multiples of {side}, got {sizes}; {below} or {below + side} would do"
        raise ArtifactError(msg)


def make_velocity(name: str, width: int, blocks: int, spec: Spec, classes: int) -> nn.Module:
    """Return a network from images in [-1, 1], times, spans and labels to velocities; 0 classes: no labels."""
    channels, *sides = spec.shape
    if name == "unet":
        return Velocity(UNet(3 * channels, channels, width, blocks, classes))
    return Velocity(DiT(3 * channels, channels, (sides[0], sides[1]), width, blocks, classes))
