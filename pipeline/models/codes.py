"""Autoencoder with discrete codes (van den Oord et al. 2017, "VQ-VAE", with the quantization of Mentzer et al. 2024).

Run with `dvc repro train@codes`. Strided convolutions, a grid of codes with a quarter of the height and width or
less, and the same backwards; a Bernoulli likelihood with dynamic binarisation, as in vae.py. Departures: no codebook
and no loss of its own (quantization.py), SiLU, residual blocks and averaged weights. The decoder learns the grey
levels, not the draw that the encoder sees: codes that tell the noise of a draw would cost a prior as many nats as they
save. And the whole is a VAE: the encoder is a distribution over codes, and a small prior of them (masked.py) learns
along. So the loss is a bound on the nats of another draw of the image, and tells the encoder the cost of its codes.

Sound is learned as pictures of its spectrum, which are not drawn: their 256 levels have a discretised logistic
likelihood. Its means are linear in what the decoder gives, and the encoder's numbers are normalised within each
picture. Most of a picture is silent: the sigmoid of vae.py, and the encoder's tanh, would get stuck where they have no
slope.

A larger prior of the same codes is learned by another run that starts from this one (codes_prior.py).

Dimensions: B batch, C H W image or picture of sound, L numbers of a code, h w codes of a picture, T = h w, K codes
there are.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.kinds import Fields, find_field
from pipeline.layers.blocks import Residual, to_bytes
from pipeline.layers.likelihoods import binarize, log_bernoulli, log_logistic_levels
from pipeline.layers.masked import MaskedPrior
from pipeline.layers.quantization import draw, find_chances, from_codes, join_chances, quantize, to_codes
from pipeline.models import OneNetwork, OneNetworkConfig

BACKBONE = ("BINARY", "find_shape", "from_levels", "require_multiple", "shift", "to_levels")
LEARNS = plugins.find_providers("backbones", BACKBONE)
LEAST_HALVINGS = 2
MOST_CODES = 1 << 12  # a step holds the chance of each of them at each place of each image
AT_ONCE = 100  # images that are scored or drawn together
LEAST = 1e-9  # of a chance, in the entropy of a loss


def _check_count(levels: list[int]) -> list[int]:
    if math.prod(levels) > MOST_CODES:
        msg = f"expected a product of at most {MOST_CODES}, got {math.prod(levels)}"
        raise ValueError(msg)
    return levels


Levels = Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1), AfterValidator(_check_count)]
Halvings = Annotated[
    int,
    Field(
        ge=LEAST_HALVINGS,
        le=5,
        exclude_if=lambda halvings: halvings == LEAST_HALVINGS,
        description="times that height and width are halved (bands and frames of sound); 2: a code is 4x4 pixels",
    ),
]
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
    halvings: Halvings = LEAST_HALVINGS
    width: int = Field(ge=1, description="channels at half resolution; twice as many at lower ones")
    blocks: int = Field(ge=0, description="residual blocks at the resolution of the codes, of encoder and of decoder")
    prior_width: int = Field(ge=1, description="channels of the small prior of the codes, a masked convolution")
    prior_blocks: int = Field(ge=0, description="residual blocks of the small prior")
    beta: float = Field(gt=0, description="weight of the codes' nats in the loss; 1: the bound on the likelihood")
    kl_warmup: int = Field(ge=0, description="steps over which beta grows from 0")
    pixel_temperature: PixelTemperature = 1.0
    shift: int = Field(
        ge=0, description="largest random shift of a training example: pixels of an image, samples of a clip"
    )


def describe_scores(config: Any) -> dict[str, Any]:
    """Return what the scores are of, for the protocol."""
    del config
    return {"of": "bernoulli on binarised images"}


def require(config: Any, fields: Fields) -> None:
    """Refuse data that the config does not fit.

    Raises:
        ArtifactError: if the sides do not halve evenly, or if pixels that are not black or white have a temperature.
    """
    spec = fields[find_field(fields, LEARNS)]
    backbone = plugins.load("backbones", spec.kind)
    try:
        backbone.require_multiple(spec, 2**config.halvings)
    except ArtifactError as error:
        if config.halvings == LEAST_HALVINGS:
            raise
        msg = f"{error}, or fewer halvings than {config.halvings}"
        raise ArtifactError(msg) from error
    if config.pixel_temperature != 1 and not backbone.BINARY:
        msg = f"pixel_temperature: expected 1 for {spec.kind}, got {config.pixel_temperature}"
        raise ArtifactError(msg)


def interleave(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the layers with a SiLU between neighbours."""
    return [each for layer in layers for each in (nn.SiLU(), layer)][1:]


class Autoencoder(nn.Module):
    """Encoder and decoder, and the levels of its codes."""

    levels: Tensor

    def __init__(
        self, spec: Any, levels: Sequence[int], halvings: int, width: int, blocks: int, pixel_temperature: float
    ) -> None:
        super().__init__()
        backbone = plugins.load("backbones", spec.kind)
        channels, height, across = backbone.find_shape(spec)
        self.side = 2**halvings  # pixels that a code stands for, in height and width
        self.size = (height // self.side, across // self.side)
        self.counts, self.count = levels, math.prod(levels)
        self.pixel_temperature = pixel_temperature
        self.register_buffer("levels", torch.tensor(levels))  # saved: codes of other levels mean something else
        widths = [width, *[2 * width] * (halvings - 1)]  # from the pixels to the codes
        down = [nn.Conv2d(before, after, 5, stride=2, padding=2) for before, after in pairwise([channels, *widths])]
        self.encoder = nn.Sequential(
            *interleave(down),
            *(Residual(2 * width) for _ in range(blocks)),
            nn.SiLU(),
            nn.Conv2d(2 * width, len(levels), 1),
        )
        first = nn.Conv2d(len(levels), 2 * width, 3, padding=1)
        residuals = [Residual(2 * width) for _ in range(blocks)]
        up = [
            nn.ConvTranspose2d(before, after, 5, stride=2, padding=2, output_padding=1)
            for before, after in pairwise([*widths[::-1], channels])
        ]
        self.decoder = nn.Sequential(first, *residuals, nn.SiLU(), *interleave(up))
        # Of the logistic, image range [0, 1]; black and white pixels have none.
        self.log_scale = None if backbone.BINARY else nn.Parameter(torch.full((channels, 1, 1), -2.0))

    def see(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Return uint8 levels (B, C, H, W) as the encoder sees them: drawn black or white, or from 0 to 1."""
        return binarize(levels, generator) if self.log_scale is None else levels / 255

    def log_likelihood(self, logits: Tensor, x: Tensor) -> Tensor:
        """Return log p(x | codes) in nats, (B,), of pixels in [0, 1] for the logits of the codes, (B, C, H, W) each."""
        if self.log_scale is None:
            return log_bernoulli(logits, x)
        return log_logistic_levels((1 + self.center(logits.float())) / 2, self.log_scale, x)

    def center(self, logits: Tensor) -> Tensor:
        """Return the pixels' means in [-1, 1] of what the decoder gives; those of sound may lie outside."""
        if self.log_scale is None:
            return (logits / (2 * self.pixel_temperature)).tanh()  # 2 sigmoid(x) - 1
        return logits / 2

    def encode(self, x: Tensor) -> Tensor:
        """Map images in [0, 1] (B, C, H, W) to the numbers of their codes before they are rounded, (B, h, w, L)."""
        z = self.encoder(2 * x - 1)
        return (z if self.log_scale is None else F.instance_norm(z)).permute(0, 2, 3, 1)

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
        return codes, torch.special.entr(find_chances(z, self.levels, max(self.counts)).double()).flatten(1).sum(dim=1)

    def write(self, codes: Tensor) -> Tensor:
        """Map codes int64 (B, T) to pixel logits (B, C, H, W)."""
        return self.decode(from_codes(codes.view(-1, *self.size), self.levels))

    def paint(self, codes: Tensor) -> Tensor:
        """Return the pixels' means of codes int64 (B, T), uint8 (B, C, H, W), sharpened below temperature 1."""
        return to_bytes(self.center(self.write(codes)))


class Network(Autoencoder):
    """The autoencoder with the small prior of its codes."""

    def __init__(self, spec: Any, config: Config) -> None:
        super().__init__(spec, config.levels, config.halvings, config.width, config.blocks, config.pixel_temperature)
        self.prior = MaskedPrior(len(self.counts), self.count, self.size, config.prior_width, config.prior_blocks)

    def divergence(self, z: Tensor, values: Tensor) -> Tensor:
        """Return the nats an image of its codes less their entropy, (B,), for a loss.

        At each place this is the KL from the encoder's chances to the prior's, given the drawn codes before it.

        Args:
            z: numbers before they are rounded, (B, h, w, L).
            values: what was drawn from them, (B, h, w, L) in [-1, 1].
        """
        chances = find_chances(z, self.levels, max(self.counts))
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


def rebuild(model: Any, values: Tensor) -> Tensor:
    """Return stored values (N, ...) of a model of codes, read as their likeliest codes and written again."""
    network = model.kept.eval()
    levels = model.backbone.to_levels(values.to(model.device), model.spec)
    made: Tensor = model.backbone.from_levels(network.paint(network.read(levels / 255)), model.spec)
    return made


class Model(OneNetwork):
    """Trains the network on a bound on the log-likelihood of each image."""

    parts: dict[str, Tensor]  # of the last loss, detached

    def build(self, fields: Fields) -> Network:
        """Return the network for images of these fields."""
        require(self.config, fields)
        self.spec = fields[self.makes]
        self.backbone = plugins.load("backbones", self.spec.kind)
        return Network(self.spec, self.config)

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
        stored = self.backbone.shift(batch[self.makes], config.shift, generator)
        levels = self.backbone.to_levels(stored, self.spec)
        z = network.encode(network.see(levels, generator))
        values = draw(z, network.levels, generator)
        reconstruction = -network.log_likelihood(network.decode(values), levels / 255).mean()
        beta = config.beta * min(1.0, (self.global_step + 1) / max(1, config.kl_warmup))
        divergence = network.divergence(z, values).mean()
        self.parts = {"reconstruction_nats": reconstruction.detach(), "kl_nats": divergence.detach()}
        return reconstruction + beta * divergence

    def draw(self, network: Any, count: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> Tensor:
        """Draw codes from the small prior, and return the pixels' means as values, such as uint8 (N, C, H, W)."""
        del given
        uniform = torch.rand(count, math.prod(network.size), generator=generator, device=self.device)
        drawn = [network.paint(network.prior.draw(part, network.levels)) for part in uniform.split(AT_ONCE)]
        values: Tensor = self.backbone.from_levels(torch.cat(drawn), self.spec)
        return values

    @torch.inference_mode()
    def reconstruct(self, values: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Encode stored values (N, ...) to their likeliest codes and decode them again, to the pixels' means."""
        del given
        return rebuild(self, values)

    def observe(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return uint8 images (N, C, H, W) as the likelihood sees them: each pixel drawn black or white.

        `score` draws nothing more of what this returns but the codes.
        """
        network: Any = self.kept
        return (network.see(images, generator) * 255).byte()

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
            x = network.see(images[indices].to(self.device), generator)
            own, entropy = network.draw_codes(x, generator)
            kl = network.prior.nats(own, network.levels).sum(dim=1) - entropy
            bound.append(kl - network.log_likelihood(network.write(own), x).double())
            divergence.append(kl)
            codes.append(own)
        found = {"elbo": torch.cat(bound), "kl": torch.cat(divergence)}
        return found | describe_use(torch.cat(codes), network.count)
