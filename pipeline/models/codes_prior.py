"""A transformer as the prior of discrete codes (van den Oord et al. 2017, "VQ-VAE"; Esser et al. 2021, "VQGAN").

Run with `dvc repro train@codes_prior`, which starts from a run of codes.py: its encoder and decoder are a part of this
model and stay as they are. The transformer of pixels.py learns the codes, row by row, after the class. They are drawn
afresh at each step, from images that are drawn black and white again, or from pictures of sound. The bound on the
likelihood is that of codes.py with this prior in the place of the small one.

Dimensions: B batch, N examples, C H W image or picture of sound, T = h w codes of an image.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

from pipeline.artifacts import ArtifactError
from pipeline.kinds import Fields
from pipeline.models import codes, pixels

BACKBONE, LEARNS = codes.BACKBONE, codes.LEARNS
STARTS = ("codes", "codes_prior")  # models that a run can start from
# Keys that are as in the start, and their names there.
SHARED = {"levels": "levels", "halvings": "halvings", "codes_width": "width", "codes_blocks": "blocks"}


class Config(pixels.Config):
    """Hyper-parameters of the prior, and those of the codes' network, as its run has them."""

    levels: codes.Levels = Field(description="levels of the codes, as in the start")
    halvings: codes.Halvings = codes.LEAST_HALVINGS
    codes_width: int = Field(ge=1, description="width of the codes' network, as in the start")
    codes_blocks: int = Field(ge=0, description="blocks of the codes' network, as in the start")
    pixel_temperature: codes.PixelTemperature = 1.0


def describe_scores(config: Any) -> dict[str, Any]:
    """Return what the scores are of, for the protocol: the class is a token whose nats count."""
    del config
    return {"of": "bernoulli on binarised images"}


def require(config: Any, fields: Fields) -> None:
    """Refuse data that the config does not fit.

    Raises:
        ArtifactError: if the codes' network cannot learn them, or if a conditional model gets no labels.
    """
    codes.require(config, fields)
    pixels.require_labels(config, fields)


class Network(codes.Autoencoder):
    """The codes' encoder and decoder, which are not trained, and the transformer."""

    def __init__(self, config: Config, spec: Any, classes: int) -> None:
        super().__init__(
            spec, config.levels, config.halvings, config.codes_width, config.codes_blocks, config.pixel_temperature
        )
        self.requires_grad_(False)
        self.prior = pixels.Network(config, self.count, classes, self.size[0] * self.size[1])


class Model(pixels.Tokens):
    """Trains the transformer on the log-likelihood of each image's codes."""

    def build(self, fields: Fields) -> Network:
        """Return the network for images of these fields."""
        require(self.config, fields)
        return Network(self.config, fields[self.makes], self.count_classes(fields))

    def begin(self, *, has_start: bool) -> None:
        """Refuse codes that are not those of a start.

        Raises:
            ArtifactError: if there is no start, or its codes have other levels.
        """
        if not has_start:
            msg = f"start: expected a run of the model {' or '.join(STARTS)}, got none"
            raise ArtifactError(msg)
        codes.require_levels(self.network, self.config)

    def find_transformer(self, network: Any) -> pixels.Network:
        """Return the part of a network that predicts codes."""
        predictor: pixels.Network = network.prior
        return predictor

    def see(self, network: Any, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Return uint8 levels (B, C, H, W) as the encoder sees them, in [0, 1]."""
        seen: Tensor = network.see(levels, generator)
        return seen

    def read(self, network: Any, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the codes of pixels in [0, 1] (B, C, H, W), int64 (B, T), and return their entropy, float64 (B,)."""
        with torch.no_grad():
            found: tuple[Tensor, Tensor] = network.draw_codes(x, generator)
        return found

    def paint(self, network: Any, tokens: Tensor, probabilities: Tensor) -> Tensor:
        """Return the pixels' means of codes (N, T), uint8 (N, C, H, W)."""
        del probabilities
        painted: Tensor = network.paint(tokens)
        return painted

    @torch.inference_mode()
    def complete(self, images: Tensor, known: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> Tensor:
        """Keep the upper `known` rows of uint8 images (N, C, H, W) and draw the codes of the others, given theirs.

        The known rows have their likeliest codes. A code stands for some rows, and is kept if half of them or more are
        known. It depends on pixels further below, too, which are taken to be as in the last known row. The known rows
        are put over the decoded images.

        given: labels int64 (N,) of a conditional model; without them, the class is drawn too.

        Raises:
            ValueError: if the rows are not some of the image's.
        """
        network: Any = self.kept.eval()
        if not 0 <= known < images.size(2):
            msg = f"known: expected rows below {images.size(2)}, got {known}"
            raise ValueError(msg)
        images = images.to(self.device)
        rows = torch.arange(images.size(2), device=self.device).clamp(max=max(known - 1, 0))
        kept = min((known + network.side // 2) // network.side, network.size[0] - 1)  # rows of codes
        tokens = network.read(network.see(images[:, :, rows], generator))[:, : kept * network.size[1]]
        painted = network.paint(self.go_on(network, tokens, generator, given)[0])
        return torch.cat([images[:, :, :known], painted[:, :, known:]], dim=2)

    @torch.inference_mode()
    def reconstruct(self, values: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Encode stored values (N, ...) to their likeliest codes and decode them again, to the pixels' means."""
        del given
        return codes.rebuild(self, values)

    def score_rest(self, network: Any, x: Tensor, tokens: Tensor) -> Tensor:
        """Return the nats of binary images (B, C, H, W) given their codes, float64 (B,)."""
        return -cast("Tensor", network.log_likelihood(network.write(tokens), x)).double()

    def describe(self, nats: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Return kl, the nats of the codes less the entropy of the encoder's choice; and their use."""
        return {"kl": nats} | codes.describe_use(tokens, cast("Network", self.network).count)
