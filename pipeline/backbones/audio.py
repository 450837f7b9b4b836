"""Log-mel pictures of sound, the way back to sound, and networks for images on these pictures.

A window of 64 ms moves by 16 ms, and 64 mel bands (the formula of HTK) reach up to half the rate. At 8 kHz, a clip of
8,192 samples becomes a picture of 64x64. Models learn the pictures, and what they make is turned into sound: powers of
frequencies from powers of bands, and phases by the fast Griffin-Lim algorithm.

Dimensions: B batch, T samples, M mel bands, K frequencies, S frames, N samples of a window.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError
from pipeline.backbones import images
from pipeline.kinds.audio import LOUDEST, Spec
from pipeline.kinds.images import Spec as ImageSpec
from pipeline.layers.blocks import from_bytes, to_bytes
from pipeline.layers.dit import HEAD, PATCH, DiT
from pipeline.layers.unet import GROUPS, UNet
from pipeline.randomness import WHOLE, Part, share

PREPROCESSING = "log-mel pictures of 64 bands, windows of 64 ms by 16 ms, no resize"  # for the protocol
BINARY = False  # loudness is no chance of a place to be white
PICTORIAL = False  # neither sound backwards nor sound of another pitch is like the data
CELL = 0.0  # pictures of sound have no levels
VELOCITIES = {"unet": (2 * PATCH, GROUPS), "dit": (PATCH, HEAD)}  # what frames and width must be multiples of
BANDS = 64
WINDOW, HOP = 0.064, 4  # seconds, rounded to a power of two samples; hops per window
FLOOR = 1e-5  # of the power; a sine of full scale has a power of 1 at its frequency
SILENCE = -1.0  # of a picture; the most frequent value, which a network of velocities is told
TOGETHER = 50  # clips that are made at a time: more do not fit a processor's cache
UNMIXED = 30  # steps towards the powers of frequencies
ITERATIONS, MOMENTUM = 32, 0.99  # of Griffin-Lim


def to_unit(clips: Tensor, spec: Spec) -> Tensor:
    """Map int16 clips (B, T) to log-mel pictures (B, 1, M, S), -1 for silence and about 1 for the loudest sine."""
    with torch.autocast(clips.device.type, enabled=False):
        pictures: Tensor = find_spectrogram(spec.rate, clips.device)(clips.float() / 2**15)
    return pictures


def from_unit(pictures: Tensor, spec: Spec) -> Tensor:
    """Map log-mel pictures (B, 1, M, S) to int16 clips (B, T) with about these pictures.

    Equal pictures give equal clips. A clip that would leave the range is made quieter as a whole.
    """
    spectrogram = find_spectrogram(spec.rate, pictures.device)
    made = []
    for part in pictures.split(TOGETHER):
        with torch.autocast(pictures.device.type, enabled=False):
            clips = spectrogram.invert(part.float())
        clips = clips / clips.abs().amax(dim=1, keepdim=True).clamp(min=1)
        made.append(F.pad(clips * LOUDEST, (0, spec.samples - clips.size(1))).round().short())
    return torch.cat(made)


def to_continuous(clips: Tensor, spec: Spec, generator: torch.Generator) -> Tensor:
    """Map int16 clips (B, T) to log-mel pictures (B, 1, M, S)."""
    del generator
    return to_unit(clips, spec)


def from_continuous(values: Tensor, spec: Spec) -> Tensor:
    """Map log-mel pictures (B, 1, M, S) to int16 clips (B, T)."""
    return from_unit(values, spec)


def to_levels(clips: Tensor, spec: Spec) -> Tensor:
    """Map int16 clips (B, T) to log-mel pictures of 256 levels, uint8 (B, 1, M, S)."""
    return to_bytes(to_unit(clips, spec))


def from_levels(levels: Tensor, spec: Spec) -> Tensor:
    """Map log-mel pictures of 256 levels, uint8 (B, 1, M, S), to int16 clips (B, T)."""
    return from_unit(from_bytes(levels), spec)


def require_multiple(spec: Spec, multiple: int) -> None:
    """Refuse clips whose number of frames is not a multiple of `multiple`."""
    require_frames(spec, lambda frames: frames and not frames % multiple, f"a multiple of {multiple} frames")


def shift(clips: Tensor, most: int, generator: torch.Generator, part: Part = WHOLE) -> Tensor:
    """Shift each clip (B, T) of a part of a batch by up to `most` samples each way, filling with silence."""
    if not most:
        return clips
    batch, samples = clips.shape

    def draw(count: int) -> Tensor:
        return torch.randint(2 * most + 1, (count, 1), generator=generator, device=clips.device)

    padded = F.pad(clips, (most, most))
    return padded.gather(1, torch.arange(samples, device=clips.device) + share(draw, batch, part))


def find_shape(spec: Spec) -> tuple[int, ...]:
    """Return the shape (1, M, S) of a clip's picture."""
    return (1, BANDS, spec.samples // find_hop(spec.rate))


def require_frames(spec: Spec, fits: Callable[[int], object], expected: str) -> None:
    """Refuse clips whose number of frames does not fit a network.

    Raises:
        ArtifactError: with the nearest lengths that would do.
    """
    hop = find_hop(spec.rate)
    frames = spec.samples // hop
    if not fits(frames):
        lengths = [count * hop for count in range(1, 2 * frames + 2 * BANDS) if fits(count)]
        near = sorted(sorted(lengths, key=lambda length: abs(length - spec.samples))[:2])
        msg = f"samples: expected clips with {expected}, got {spec.samples} samples, which are {frames} frames of {hop}"
        raise ArtifactError(f"{msg}; samples {near[0]} or {near[1]} would do")


def require_features(spec: Spec) -> None:
    """Refuse clips that are too short for the classifier, of less than 8 frames."""
    require_frames(spec, lambda frames: frames >= 8, "8 frames or more")


def make_features(spec: Spec, width: int) -> tuple[nn.Sequential, int]:
    """Return the classifier's layers from pictures (B, 1, M, S) to (B, F), and F."""
    require_features(spec)
    return images.make_features(make_picture_spec(spec), width)


def make_picture_spec(spec: Spec) -> ImageSpec:
    """Return the properties of the pictures, for networks of images."""
    return ImageSpec(shape=find_shape(spec))


def require_generator(spec: Spec) -> None:
    """Refuse clips whose pictures do not halve evenly, down to 2 to 8 bands and frames."""
    require_frames(
        spec, lambda frames: images.halve(BANDS, frames), f"frames that halve evenly along with {BANDS} bands"
    )


def make_generator(spec: Spec, inputs: int, width: int, full_width: int) -> nn.Sequential:
    """Return layers from (B, inputs) to pictures (B, 1, M, S)."""
    return images.make_generator(make_picture_spec(spec), inputs, width, full_width)


def make_discriminator(
    spec: Spec, width: int, normalize: Callable[[nn.Module], nn.Module]
) -> tuple[nn.Sequential, int]:
    """Return layers from pictures (B, 1, M, S) to features (B, F), and F."""
    return images.make_discriminator(make_picture_spec(spec), width, normalize)


def require_velocity(name: str, width: int, spec: Spec) -> None:
    """Refuse a network or a width that sound has not, and frames that the network cannot cut up.

    Raises:
        ArtifactError: with what would do.
    """
    if name not in VELOCITIES:
        msg = f"backbone: expected {' or '.join(VELOCITIES)} for audio, got {name}"
        raise ArtifactError(msg)
    side, multiple = VELOCITIES[name]
    if width % multiple:
        msg = f"width: expected a multiple of {multiple} with backbone {name}, got {width}"
        raise ArtifactError(msg)
    require_frames(spec, lambda frames: frames and not frames % side, f"a multiple of {side} frames")


def make_velocity(name: str, width: int, blocks: int, spec: Spec, classes: int) -> nn.Module:
    """Return a network from pictures, times, spans and labels to velocities; 0 classes: no labels."""
    if name == "unet":
        return images.Velocity(UNet(2, 1, width, blocks, classes, PATCH), (SILENCE,))
    _, *sides = find_shape(spec)
    return images.Velocity(DiT(2, 1, (sides[0], sides[1]), width, blocks, classes), (SILENCE,))


def find_hop(rate: int) -> int:
    """Return the samples between two frames, a quarter of the window."""
    return 2 ** round(math.log2(WINDOW * rate)) // HOP


@functools.lru_cache
def find_spectrogram(rate: int, device: torch.device) -> "LogMel":
    """Return the one spectrogram of a rate on a device."""
    with torch.inference_mode(mode=False):  # it may serve a training afterwards
        return LogMel(rate).to(device)


class LogMel(nn.Module):
    """Maps clips (B, T) in [-1, 1] to log-mel pictures (B, 1, M, T // hop), about -1 for silence to 1, and back."""

    window: Tensor
    mel: Tensor

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.hop = find_hop(rate)
        window = torch.hann_window(HOP * self.hop)
        self.register_buffer("window", window / window.sum() * 2)
        self.register_buffer("mel", make_mel(rate, len(window) // 2 + 1))

    def forward(self, clips: Tensor) -> Tensor:
        """Return log(power + 1e-5), scaled so that silence is -1 and power 1 is 1."""
        spectrum = self.analyse(clips, clips.size(1) // self.hop)
        power = self.mel @ spectrum.abs().square().mT  # (B, S, K) -> (B, M, S)
        floor = torch.tensor(FLOOR).log()
        return (1 - 2 * (power + FLOOR).log() / floor)[:, None]

    def analyse(self, clips: Tensor, frames: int) -> Tensor:
        """Return the spectra (B, S, K) of the windows around every hop of clips (B, T), complex."""
        padded = F.pad(clips, (len(self.window) // 2,) * 2)
        return torch.fft.rfft(padded.unfold(1, len(self.window), self.hop)[:, :frames] * self.window)

    def synthesise(self, spectra: Tensor) -> Tensor:
        """Return the clips (B, S hop) whose windows have about these spectra (B, S, K): least squares."""
        frames, length = spectra.size(1), len(self.window)

        def add_up(windows: Tensor) -> Tensor:  # (B, S, N) -> (B, S hop)
            size = (1, (frames - 1) * self.hop + length)
            added = F.fold(windows.mT, size, (1, length), stride=(1, self.hop))
            return added.flatten(1)[:, length // 2 :][:, : frames * self.hop]

        weights = add_up(self.window.square().expand(1, frames, -1))
        return add_up(torch.fft.irfft(spectra, n=length) * self.window) / weights

    def invert(self, pictures: Tensor) -> Tensor:
        """Return clips (B, S hop) in about [-1, 1] whose pictures are about these (B, 1, M, S).

        The bits of a clip do not depend on the clips next to it: products and transforms are of one clip at a time.
        """
        floor = torch.tensor(FLOOR).log()
        bands = (((1 - pictures[:, 0]) / 2 * floor).exp() - FLOOR).clamp(min=0)  # (B, M, S)
        return self.find_phases(self.unmix(bands).mT.sqrt().contiguous())  # strided transforms have other bits

    def unmix(self, bands: Tensor) -> Tensor:
        """Return powers of frequencies (B, K, S) that mix to powers of bands (B, M, S), none of them negative.

        There are many; the one found is near to even powers within a band. Steps of Richardson (1972) and Lucy (1974)
        keep ratios, as logarithms need it: 30 of them leave an error of a hundredth of that of the phases.
        """
        powers = self.mel.T @ (bands / self.mel.sum(dim=1, keepdim=True).clamp(min=1e-6))
        weights = self.mel.sum(dim=0).clamp(min=1e-6)[:, None]
        for _ in range(UNMIXED):
            powers = powers * (self.mel.T @ (bands / (self.mel @ powers).clamp(min=1e-9))) / weights
        return powers

    def find_phases(self, amplitudes: Tensor) -> Tensor:
        """Return clips (B, S hop) whose spectra have about these amplitudes (B, S, K).

        Fast Griffin-Lim (Perraudin et al. 2013), from phases of zero, which serve as well as random ones.
        """
        spectra, before = torch.complex(amplitudes, torch.zeros_like(amplitudes)), None
        for _ in range(ITERATIONS):
            found = self.analyse(self.synthesise(spectra), amplitudes.size(1))
            ahead = found if before is None else found + MOMENTUM * (found - before)
            spectra, before = ahead * (amplitudes / ahead.abs().clamp(min=1e-16)), found
        return self.synthesise(spectra)


def make_mel(rate: int, frequencies: int) -> Tensor:
    """Return triangles of height 1 between neighbours on the mel scale, 2595 log10(1 + Hz / 700), float32 (M, K)."""
    hertz = torch.linspace(0, rate / 2, frequencies, dtype=torch.float64)
    highest = 2595 * torch.log10(1 + hertz[-1] / 700)
    corners = 700 * (10 ** (torch.linspace(0, 1, BANDS + 2, dtype=torch.float64) * highest / 2595) - 1)
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()
