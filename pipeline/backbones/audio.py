"""Log-mel spectrograms for audio, and the classifier's convolutions for images on them.

A window of 64 ms moves by 16 ms, and 64 mel bands (the formula of HTK) reach up to half the rate. One second at 8 kHz
becomes a picture of 64x62. Models that make sound need a generator, which this file does not define: they refuse it.

Dimensions: B batch, T samples, M mel bands, K frequencies, S frames.
"""

import torch
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError
from pipeline.backbones import images
from pipeline.kinds.audio import Spec
from pipeline.kinds.images import Spec as ImageSpec
from pipeline.randomness import WHOLE, Part, share

BANDS = 64
WINDOW, HOP = 0.064, 4  # seconds, rounded to a power of two samples; hops per window
FLOOR = 1e-5  # of the power; a sine of full scale has a power of 1 at its frequency


def to_unit(clips: Tensor) -> Tensor:
    """Map int16 clips (B, T) to float32 in [-1, 1)."""
    return clips.float() / 2**15


def shift(clips: Tensor, most: int, generator: torch.Generator, part: Part = WHOLE) -> Tensor:
    """Shift each clip (B, T) of a part of a batch by up to `most` samples each way, filling with silence."""
    if not most:
        return clips
    batch, samples = clips.shape

    def draw(count: int) -> Tensor:
        return torch.randint(2 * most + 1, (count, 1), generator=generator, device=clips.device)

    padded = nn.functional.pad(clips, (most, most))
    return padded.gather(1, torch.arange(samples, device=clips.device) + share(draw, batch, part))


def require_features(spec: Spec) -> None:
    """Refuse clips that are too short for the classifier.

    Raises:
        ArtifactError: if a clip is shorter than 8 frames.
    """
    needed = 8 * LogMel(spec.rate).hop
    if spec.samples < needed:
        msg = f"the classifier needs clips of {needed} samples or more at {spec.rate} Hz, got {spec.samples}"
        raise ArtifactError(msg)


def make_features(spec: Spec, width: int) -> tuple[nn.Sequential, int]:
    """Return the classifier's layers from clips (B, T) in [-1, 1] to (B, F), and F."""
    require_features(spec)
    spectrogram = LogMel(spec.rate)
    layers, flat = images.make_features(ImageSpec(shape=(1, BANDS, spec.samples // spectrogram.hop)), width)
    return nn.Sequential(spectrogram, *layers), flat


class LogMel(nn.Module):
    """Maps clips (B, T) in [-1, 1] to log-mel spectrograms (B, 1, M, T // hop), about -1 for silence to 1."""

    window: Tensor
    mel: Tensor

    def __init__(self, rate: int) -> None:
        super().__init__()
        length = 2 ** round(torch.tensor(WINDOW * rate).log2().item())
        self.hop = length // HOP
        window = torch.hann_window(length)
        # Both follow from the rate, so no file of weights holds them.
        self.register_buffer("window", window / window.sum() * 2, persistent=False)
        self.register_buffer("mel", make_mel(rate, length // 2 + 1), persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        """Return log(power + 1e-5), scaled so that silence is -1 and power 1 is 1."""
        padded = nn.functional.pad(clips, (len(self.window) // 2,) * 2)
        spectrum = torch.stft(padded, len(self.window), self.hop, window=self.window, center=False, return_complex=True)
        power = self.mel @ spectrum[..., : clips.size(1) // self.hop].abs().square()  # (B, K, S) -> (B, M, S)
        floor = torch.tensor(FLOOR).log()
        return (1 - 2 * (power + FLOOR).log() / floor)[:, None]


def make_mel(rate: int, frequencies: int) -> Tensor:
    """Return triangles of height 1 between neighbours on the mel scale, 2595 log10(1 + Hz / 700), float32 (M, K)."""
    hertz = torch.linspace(0, rate / 2, frequencies, dtype=torch.float64)
    highest = 2595 * torch.log10(1 + hertz[-1] / 700)
    corners = 700 * (10 ** (torch.linspace(0, 1, BANDS + 2, dtype=torch.float64) * highest / 2595) - 1)
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()
