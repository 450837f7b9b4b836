"""Autoencoder with discrete codes (van den Oord et al. 2017, "VQ-VAE", with the quantization of Mentzer et al. 2024).

Run with `dvc repro train@codes`. Two strided convolutions, a code at each place of a quarter of the height and width,
and the same backwards; a Bernoulli likelihood with dynamic binarisation, as in vae.py. Departures: no codebook and no
loss of its own (quantization.py), SiLU, residual blocks, averaged weights; and the decoder learns the grey levels, not
the draw that the encoder sees: codes that tell the noise of a draw would cost a prior as many nats as they save.

A prior of the codes is learned by another run that starts from this one (codes_prior.py). Without it all codes are
equally likely, and samples are drawn so.

Dimensions: B batch, C H W image, L numbers of a code, h w codes of an image.
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
from pipeline.layers.quantization import from_codes, quantize, to_codes
from pipeline.models import OneNetwork, OneNetworkConfig

LEARNS = ("images",)
MOST_CODES = 1 << 16


def _check_count(levels: list[int]) -> list[int]:
    if math.prod(levels) > MOST_CODES:
        msg = f"expected a product of at most {MOST_CODES}, got {math.prod(levels)}"
        raise ValueError(msg)
    return levels


Levels = Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1), AfterValidator(_check_count)]


class Config(OneNetworkConfig):
    """Hyper-parameters of the autoencoder."""

    levels: Levels = Field(description="levels of each number of a code; their product is the number of codes")
    width: int = Field(ge=1, description="channels at half resolution; twice as many at a quarter")
    blocks: int = Field(ge=0, description="residual blocks at a quarter of the resolution, of encoder and of decoder")
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


class Network(nn.Module):
    """Encoder and decoder, and the levels of its codes."""

    levels: Tensor

    def __init__(self, spec: Spec, levels: Sequence[int], width: int, blocks: int) -> None:
        super().__init__()
        channels, height, across = spec.shape
        self.size = (height // 4, across // 4)
        self.count = math.prod(levels)
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
        """Map images in [0, 1] (B, C, H, W) to the values of their codes, (B, h, w, L) in [-1, 1]."""
        return quantize(self.encoder(2 * x - 1).permute(0, 2, 3, 1), self.levels)

    def decode(self, values: Tensor) -> Tensor:
        """Map values of codes (B, h, w, L) to pixel logits (B, C, H, W)."""
        return self.decoder(values.permute(0, 3, 1, 2))

    def read(self, x: Tensor) -> Tensor:
        """Return the codes of images in [0, 1], int64 (B, h w), row by row."""
        return to_codes(self.encode(x), self.levels).flatten(1)

    def write(self, codes: Tensor) -> Tensor:
        """Map codes int64 (B, h w) to pixel logits (B, C, H, W)."""
        return self.decode(from_codes(codes.view(-1, *self.size), self.levels))

    def paint(self, codes: Tensor) -> Tensor:
        """Return the pixels' means of codes int64 (B, h w), uint8 (B, C, H, W)."""
        return to_bytes((self.write(codes) / 2).tanh())  # 2 sigmoid(x) - 1


def describe_use(codes: Tensor, count: int) -> dict[str, Tensor]:
    """Return how codes int64 (...) are used: the share of `count` that occurs, and the exponential of the entropy."""
    shares = codes.flatten().bincount(minlength=count).double() / codes.numel()
    return {"codes_used": (shares > 0).double().mean(), "code_perplexity": torch.special.entr(shares).sum().exp()}


class Model(OneNetwork):
    """Trains the network on the log-likelihood of each image given its codes."""

    def build(self, fields: Fields) -> Network:
        """Return the network for images of these fields."""
        require(config := self.config, fields)
        return Network(fields[self.makes], config.levels, config.width, config.blocks)

    def compute_loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return the nats an image of other draws of the pixels than the one that is encoded, in the mean over them."""
        images, network = shift_images(batch[self.makes], self.config.shift, generator), cast("Network", self.network)
        values = network.encode(binarize(images, generator))
        return -log_bernoulli(network.decode(values), images / 255).mean()

    def draw(self, network: Any, count: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> Tensor:
        """Draw every code with equal chances, and return the pixels' means, uint8 (N, C, H, W)."""
        del given
        size = (count, math.prod(network.size))
        return network.paint(torch.randint(network.count, size, generator=generator, device=self.device))

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Encode uint8 images (N, C, H, W) and decode them again, to the pixels' means."""
        del given
        network: Any = self.kept.eval()
        painted: Tensor = network.paint(network.read(images.to(self.device) / 255))
        return painted

    def observe(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return uint8 images (N, C, H, W) as the likelihood sees them: each pixel drawn black or white.

        `score` draws nothing more of what this returns.
        """
        return (binarize(images, generator) * 255).byte()

    @torch.inference_mode()
    def score(
        self, images: Tensor, samples: int, generator: torch.Generator, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Score held-out uint8 images (N, C, H, W), in nats an image.

        An image has one code only, so that more `samples` change nothing.

        Returns:
            elbo, iw: the bound on the negative log-likelihood, twice, float64 (N,): the nats of the image given its
            codes, and those of the codes; kl: the latter, float64 (N,); codes_used: share of the codes that occurs, a
            scalar; code_perplexity: the exponential of the codes' entropy, a scalar.
        """
        del samples
        network: Any = self.kept.eval()
        bound, prior, codes = [], [], []
        for indices in torch.arange(len(images)).split(100):
            x = binarize(images[indices].to(self.device), generator)
            own = network.read(x)
            nats = self.score_codes(network, own, {name: given[name][indices] for name in self.given})
            bound.append(nats - log_bernoulli(network.write(own), x).double())
            prior.append(nats)
            codes.append(own)
        nats = torch.cat(bound)
        return {"elbo": nats, "iw": nats.clone(), "kl": torch.cat(prior)} | describe_use(
            torch.cat(codes), network.count
        )

    def score_codes(self, network: Any, codes: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Return the nats of codes int64 (B, h w), float64 (B,)."""
        del given
        nats = codes.size(1) * math.log(network.count)
        return torch.full((len(codes),), nats, dtype=torch.float64, device=codes.device)
