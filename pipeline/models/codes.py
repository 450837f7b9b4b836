"""Autoencoder with discrete codes (van den Oord et al. 2017, "VQ-VAE", with the quantization of Mentzer et al. 2024).

Run with `dvc repro train@codes`. Two strided convolutions, a code at each place of a quarter of the height and width,
and the same backwards; a Bernoulli likelihood with dynamic binarisation, as in vae.py. Departures: no codebook and no
loss of its own (quantization.py), SiLU, residual blocks and averaged weights. The decoder learns the grey levels, not
the draw that the encoder sees: codes that tell the noise of a draw would cost a prior as many nats as they save. And
the whole is a VAE: the encoder is a distribution over codes, and a small prior of them (masked.py) learns along. So the
loss is a bound on the nats of another draw of the image, and tells the encoder the cost of its codes.

A larger prior of the same codes is learned by another run that starts from this one (codes_prior.py).

Dimensions: B batch, C H W image, L numbers of a code, h w codes of an image, T = h w, K codes there are.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError
from pipeline.kinds import Fields, find_field
from pipeline.kinds.images import Spec
from pipeline.layers.blocks import Residual, shift_images, to_bytes
from pipeline.layers.likelihoods import binarize, log_bernoulli
from pipeline.layers.masked import MaskedPrior
from pipeline.layers.quantization import draw, find_chances, from_codes, join_chances, quantize, to_codes
from pipeline.models import OneNetwork, OneNetworkConfig

LEARNS = ("images",)
MOST_CODES = 1 << 12  # a step holds the chance of each of them at each place of each image
AT_ONCE = 100  # images that are scored or drawn together
LEAST = 1e-9  # of a chance, in the entropy of a loss


def _check_count(levels: list[int]) -> list[int]:
    if math.prod(levels) > MOST_CODES:
        msg = f"expected a product of at most {MOST_CODES}, got {math.prod(levels)}"
        raise ValueError(msg)
    return levels


Levels = Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1), AfterValidator(_check_count)]
PixelTemperature = Annotated[
    float,
    Field(
        gt=0,
        exclude_if=lambda temperature: temperature == 1,
        description="divides the pixels' logits in samples and reconstructions; 1 shows the pixels' means",
    ),
]


class Config(OneNetworkConfig):
    """Hyper-parameters of the autoencoder."""

    levels: Levels = Field(description="levels of each number of a code; their product is the number of codes")
    width: int = Field(ge=1, description="channels at half resolution; twice as many at a quarter")
    blocks: int = Field(ge=0, description="residual blocks at a quarter of the resolution, of encoder and of decoder")
    prior_width: int = Field(ge=1, description="channels of the small prior of the codes, a masked convolution")
    prior_blocks: int = Field(ge=0, description="residual blocks of the small prior")
    beta: float = Field(gt=0, description="weight of the codes' nats in the loss; 1: the bound on the likelihood")
    kl_warmup: int = Field(ge=0, description="steps over which beta grows from 0")
    pixel_temperature: PixelTemperature = 1.0
    shift: int = Field(ge=0, description="largest random shift of a training image, in pixels")


def describe_scores(config: Any) -> dict[str, Any]:
    """Return what the scores are of, for the protocol."""
    del config
    return {"of": "bernoulli on binarised images"}


def require(config: Any, fields: Fields) -> None:
    """Refuse data that the config does not fit.

    Raises:
        ArtifactError: if the sides are no multiples of 4.
    """
    del config
    height, width = fields[find_field(fields, LEARNS)].shape[1:]
    if height % 4 or width % 4:
        below = max(4, max(height, width) // 4 * 4)
        msg = f"image sides must be multiples of 4, got {height}x{width}; {below} or {below + 4} would do"
        raise ArtifactError(msg)


class Autoencoder(nn.Module):
    """Encoder and decoder, and the levels of its codes."""

    levels: Tensor

    def __init__(self, spec: Spec, levels: Sequence[int], width: int, blocks: int, pixel_temperature: float) -> None:
        super().__init__()
        channels, height, across = spec.shape
        self.size = (height // 4, across // 4)
        self.count, self.most = math.prod(levels), max(levels)
        self.pixel_temperature = pixel_temperature
        self.register_buffer("levels", torch.tensor(levels))  # saved: codes of other levels mean something else
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 5, stride=2, padding=2),
            *(Residual(2 * width) for _ in range(blocks)),
            nn.SiLU(),
            nn.Conv2d(2 * width, len(levels), 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(len(levels), 2 * width, 3, padding=1),
            *(Residual(2 * width) for _ in range(blocks)),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 5, stride=2, padding=2, output_padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, channels, 5, stride=2, padding=2, output_padding=1),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Map images in [0, 1] (B, C, H, W) to the numbers of their codes before they are rounded, (B, h, w, L)."""
        return self.encoder(2 * x - 1).permute(0, 2, 3, 1)

    def decode(self, values: Tensor) -> Tensor:
        """Map values of codes in [-1, 1] (B, h, w, L) to pixel logits (B, C, H, W)."""
        return self.decoder(values.permute(0, 3, 1, 2))

    def read(self, x: Tensor) -> Tensor:
        """Return the likeliest codes of images in [0, 1], int64 (B, T), row by row."""
        return to_codes(quantize(self.encode(x), self.levels), self.levels).flatten(1)

    def draw_codes(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw codes of images in [0, 1]: int64 (B, T), and the entropy of an image's codes in nats, float64 (B,)."""
        z = self.encode(x)
        codes = to_codes(draw(z, self.levels, generator), self.levels).flatten(1)
        return codes, torch.special.entr(find_chances(z, self.levels, self.most).double()).flatten(1).sum(dim=1)

    def write(self, codes: Tensor) -> Tensor:
        """Map codes int64 (B, T) to pixel logits (B, C, H, W)."""
        return self.decode(from_codes(codes.view(-1, *self.size), self.levels))

    def paint(self, codes: Tensor) -> Tensor:
        """Return the pixels' means of codes int64 (B, T), uint8 (B, C, H, W), sharpened below temperature 1."""
        return to_bytes((self.write(codes) / (2 * self.pixel_temperature)).tanh())  # 2 sigmoid(x) - 1


class Network(Autoencoder):
    """The autoencoder with the small prior of its codes."""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config.levels, config.width, config.blocks, config.pixel_temperature)
        self.counts = config.levels
        self.prior = MaskedPrior(len(self.counts), self.count, self.size, config.prior_width, config.prior_blocks)

    def divergence(self, z: Tensor, values: Tensor) -> Tensor:
        """Return the nats an image of its codes less their entropy, (B,), for a loss.

        At each place this is the KL from the encoder's chances to the prior's, given the drawn codes before it.

        Args:
            z: numbers before they are rounded, (B, h, w, L).
            values: what was drawn from them, (B, h, w, L) in [-1, 1].
        """
        chances = find_chances(z, self.levels, self.most)
        joint = join_chances(chances, self.counts).flatten(1, 2)  # (B, T, K)
        # Where a chance is 0, the entropy's slope is infinite.
        entropy = torch.special.entr(chances.clamp(min=LEAST)).flatten(1).sum(dim=1)
        return -(joint * self.prior(values)).sum(dim=(1, 2)) - entropy


def require_levels(network: Any, config: Any) -> None:
    """Refuse a start whose codes are others: equal shapes do not tell.

    Raises:
        ArtifactError: with both levels.
    """
    if (levels := network.levels.tolist()) != config.levels:
        msg = f"levels: expected {levels} as in the start, got {config.levels}"
        raise ArtifactError(msg)


def describe_use(codes: Tensor, count: int) -> dict[str, Tensor]:
    """Return how codes int64 (...) are used: the share of `count` that occurs, and the exponential of the entropy."""
    shares = codes.flatten().bincount(minlength=count).double() / codes.numel()
    return {"codes_used": (shares > 0).double().mean(), "code_perplexity": torch.special.entr(shares).sum().exp()}


class Model(OneNetwork):
    """Trains the network on a bound on the log-likelihood of each image."""

    parts: dict[str, Tensor]  # of the last loss, detached

    def build(self, fields: Fields) -> Network:
        """Return the network for images of these fields."""
        require(self.config, fields)
        return Network(fields[self.makes], self.config)

    def begin(self, *, has_start: bool) -> None:
        """Refuse codes of a start that are others.

        Raises:
            ArtifactError: if its codes have other levels.
        """
        del has_start
        require_levels(self.network, self.config)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one batch, and its parts in nats an image."""
        return super().training_step(batch, batch_idx) | self.parts

    def compute_loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return the nats of an image: those of its codes, and of other draws of its pixels than the encoded one."""
        config, network = self.config, cast("Network", self.network)
        images = shift_images(batch[self.makes], config.shift, generator)
        z = network.encode(binarize(images, generator))
        values = draw(z, network.levels, generator)
        reconstruction = -log_bernoulli(network.decode(values), images / 255).mean()
        beta = config.beta * min(1.0, (self.global_step + 1) / max(1, config.kl_warmup))
        divergence = network.divergence(z, values).mean()
        self.parts = {"reconstruction_nats": reconstruction.detach(), "kl_nats": divergence.detach()}
        return reconstruction + beta * divergence

    def draw(self, network: Any, count: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> Tensor:
        """Draw codes from the small prior, and return the pixels' means, uint8 (N, C, H, W)."""
        del given
        uniform = torch.rand(count, math.prod(network.size), generator=generator, device=self.device)
        drawn = [network.paint(network.prior.draw(part, network.levels)) for part in uniform.split(AT_ONCE)]
        return torch.cat(drawn)

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Encode uint8 images (N, C, H, W) to their likeliest codes and decode them again, to the pixels' means."""
        del given
        network: Any = self.kept.eval()
        painted: Tensor = network.paint(network.read(images.to(self.device) / 255))
        return painted

    def observe(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return uint8 images (N, C, H, W) as the likelihood sees them: each pixel drawn black or white.

        `score` draws nothing more of what this returns but the codes.
        """
        return (binarize(images, generator) * 255).byte()

    @torch.inference_mode()
    def score(
        self, images: Tensor, samples: int, generator: torch.Generator, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Score held-out uint8 images (N, C, H, W), in nats an image, with one draw of their codes, whatever `samples`.

        Returns:
            elbo: the bound on the negative log-likelihood, float64 (N,): the nats of the image given its codes, and
            kl; kl: the nats of the codes less the entropy of the encoder's choice, float64 (N,); codes_used: share of
            the codes that occurs, a scalar; code_perplexity: the exponential of the codes' entropy, a scalar.
        """
        del samples, given
        network: Any = self.kept.eval()
        bound, divergence, codes = [], [], []
        for indices in torch.arange(len(images)).split(AT_ONCE):
            x = binarize(images[indices].to(self.device), generator)
            own, entropy = network.draw_codes(x, generator)
            kl = network.prior.nats(own, network.levels).sum(dim=1) - entropy
            bound.append(kl - log_bernoulli(network.write(own), x).double())
            divergence.append(kl)
            codes.append(own)
        found = {"elbo": torch.cat(bound), "kl": torch.cat(divergence)}
        return found | describe_use(torch.cat(codes), network.count)
