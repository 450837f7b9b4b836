"""Images as a sequence of tokens, one patch after the other (Chen et al. 2020, "Generative pretraining from pixels").

Run with `dvc repro train@pixels`. Each training image is drawn black and white again at every step, as in vae.py, and
each 2x2 patch is one token: an MNIST image is 196 tokens of 16. The transformer of transformer.py predicts each token
from those before it, row by row, so that the likelihood of an image is exact. The first token is the class.
Departures: patches instead of pixels, a vector for each place next to rotary positions, Muon.

Dimensions: B batch, N images, C H W image, T tokens of an image, V symbols, D width.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.kinds import Fields, find_field
from pipeline.layers.blocks import Muon, pick, token_nats, warmup_cosine
from pipeline.layers.decoding import Decoder
from pipeline.layers.likelihoods import binarize
from pipeline.models import OneNetwork, OneNetworkConfig, transformer

BACKBONE = ("from_levels", "shift", "to_levels")
LEARNS = ("images",)
SIDE = 2  # pixels of a patch
AT_ONCE = 100  # images that are scored or drawn together, as keys and values take memory


class Config(OneNetworkConfig):
    """Hyper-parameters of the transformer."""

    conditional: bool = Field(description="begin with the class; false: with the same token for all images")
    layers: int = Field(ge=1, description="blocks")
    heads: int = Field(ge=1, description="attention heads per block")
    width: int = Field(ge=2, description="width D of the residual stream")
    dropout: float = Field(ge=0, lt=1, description="share of activations dropped, of each block's output")
    shift: int = Field(
        ge=0, description="largest random shift of a training example: pixels of an image, samples of a clip"
    )
    matrix_learning_rate: float = Field(gt=0, description="peak learning rate of the hidden matrices (Muon)")
    temperature: float = Field(gt=0, description="divides the logits when sampling; 1 draws what was learned")

    @model_validator(mode="after")
    def _check_heads(self) -> "Config":
        if self.width % (2 * self.heads):
            msg = f"width must be a multiple of 2 * heads (rotary positions turn pairs), got {self.width}, {self.heads}"
            raise ValueError(msg)
        return self


def describe_scores(config: Any) -> dict[str, Any]:
    """Return what the scores are of, for the protocol: the class is a token whose nats count."""
    del config
    return {"of": "bernoulli on binarised images"}


def require(config: Any, fields: Fields) -> None:
    """Refuse data that the config does not fit.

    Raises:
        ArtifactError: if the sides are odd, or if a conditional model gets no labels.
    """
    require_labels(config, fields)
    channels, height, width = fields[find_field(fields, LEARNS)].shape
    if height % SIDE or width % SIDE:
        msg = f"expected images with even sides, as patches are {SIDE}x{SIDE}, got {height}x{width}"
        raise ArtifactError(msg)
    if channels > 1:
        msg = f"expected images of 1 channel, as a patch of more has too many symbols, got {channels}"
        raise ArtifactError(msg)


def require_labels(config: Any, fields: Fields) -> None:
    """Refuse a conditional model of data without labels.

    Raises:
        ArtifactError: with what would do.
    """
    if config.conditional and ("labels" not in fields or not fields["labels"].classes):
        msg = "conditional true needs labels, and the data have none: set conditional false"
        raise ArtifactError(msg)


class Network(transformer.Network):
    """The transformer with a vector for each place: tokens (B, T) int64 to logits (B, T, V) of the next ones.

    The first token is V + class, the others are symbols below V.
    """

    def __init__(self, config: Any, symbols: int, classes: int, places: int) -> None:
        body = transformer.Config.model_construct(**config.model_dump() | {"context": places})
        super().__init__(body, symbols + classes)
        self.classes, self.count = classes, places
        self.places = nn.Embedding(places, config.width)
        self.head = nn.Linear(config.width, symbols, bias=False)  # a class is never the next token
        nn.init.zeros_(self.places.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of each next token."""
        length = tokens.size(1)
        x = self.embedding(tokens) + self.places.weight[:length]  # (B, T, D)
        for block in self.blocks:
            x = block(x, self.rotation[:, :length])
        return self.head(self.norm(x))

    def nats(self, first: Tensor, tokens: Tensor) -> Tensor:
        """Return the nats of each of the tokens int64 (B, T) after classes int64 (B,), float64 (B, T)."""
        inputs = torch.cat([first[:, None] + self.head.out_features, tokens[:, :-1]], dim=1)
        return token_nats(self(inputs), tokens)

    def decoder(self, count: int) -> Decoder:
        """Return a decoder of `count` sequences, whose token at a place is place * (V + classes) + token."""
        table = (self.places.weight[:, None] + self.embedding.weight).flatten(0, 1)
        parts = {"embedding": nn.Embedding.from_pretrained(table), "blocks": self.blocks, "rotation": self.rotation}
        return Decoder(SimpleNamespace(**parts, norm=self.norm, head=self.head), count)

    @torch.inference_mode()
    def generate(
        self, first: Tensor, known: Tensor, uniform: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Continue sequences with a cache of keys and values.

        Args:
            first: classes, int64 (N,).
            known: the first tokens, int64 (N, K), K >= 0.
            uniform: numbers in [0, 1), float (N, T - K), each of which decides on one token; equal numbers of a row
                give equal tokens, whatever the other rows are.
            temperature: divides the logits.

        Returns:
            Tokens int64 (N, T), and the probabilities that the last T - K were drawn from, float (N, T - K, V).
        """
        symbols, kinds = self.head.out_features, self.embedding.num_embeddings
        decoder = self.decoder(len(first))
        tokens = torch.cat([first[:, None] + symbols, known], dim=1)
        fresh = tokens + torch.arange(tokens.size(1), device=tokens.device) * kinds
        seen = []
        for number in uniform.T:
            probabilities = (decoder.feed(fresh) / temperature).softmax(dim=-1)  # (N, V)
            picked = pick(probabilities, number)[:, None]
            fresh = picked + tokens.size(1) * kinds
            tokens = torch.cat([tokens, picked], dim=1)
            seen.append(probabilities)
        return tokens[:, 1:], torch.stack(seen, dim=1)


def to_tokens(x: Tensor) -> Tensor:
    """Number the patches of binary images (B, 1, H, W), row by row: int64 (B, T) below 16."""
    bits = F.pixel_unshuffle(x, SIDE).flatten(2).long()  # (B, 4, T)
    return (bits << torch.arange(SIDE**2, device=x.device)[:, None]).sum(dim=1)


def to_means(probabilities: Tensor, height: int) -> Tensor:
    """Return each pixel's chance to be white, times 255, of patches' probabilities (B, T, V): uint8 (B, 1, H, W)."""
    symbols = torch.arange(2**SIDE**2, device=probabilities.device)[:, None]
    bits = symbols >> torch.arange(SIDE**2, device=probabilities.device) & 1  # (V, 4)
    means = (probabilities @ bits.to(probabilities.dtype)).transpose(1, 2)
    return (F.pixel_shuffle(means.unflatten(2, (height // SIDE, -1)), SIDE) * 255).round().byte()


class Tokens(OneNetwork):
    """A model of the tokens of pictures. A subclass defines `build`, and what the tokens of a picture are."""

    def __init__(self, config: Any, fields: Fields, seed: int) -> None:
        super().__init__(config, fields, seed)
        self.given = ("labels",) if config.conditional else ()
        self.spec = fields[self.makes]
        self.backbone = plugins.load("backbones", self.spec.kind)

    def count_classes(self, fields: Fields) -> int:
        """Return how many tokens an image can begin with."""
        return fields["labels"].classes if self.config.conditional else 1

    def find_classes(self, values: Mapping[str, Tensor], count: int) -> Tensor:
        """Return the classes int64 (N,) that images begin with."""
        if not self.config.conditional:
            return torch.zeros(count, dtype=torch.int64, device=self.device)
        return values["labels"].to(self.device)

    @abstractmethod
    def find_transformer(self, network: Any) -> Network:
        """Return the part of a network that predicts tokens."""

    @abstractmethod
    def see(self, network: Any, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Return uint8 levels (B, C, H, W) as `read` takes them, in [0, 1]."""

    @abstractmethod
    def read(self, network: Any, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return tokens int64 (B, T) of what is seen, (B, C, H, W), and the entropy of their draw, float64 (B,)."""

    @abstractmethod
    def paint(self, network: Any, tokens: Tensor, probabilities: Tensor) -> Tensor:
        """Return the images of tokens (N, T) that were drawn from probabilities (N, T, V): uint8 (N, C, H, W)."""

    @abstractmethod
    def score_rest(self, network: Any, x: Tensor, tokens: Tensor) -> Tensor:
        """Return the nats of binary images (B, C, H, W) given their tokens, float64 (B,)."""

    def compute_loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return the nats a token."""
        stored = self.backbone.shift(batch[self.makes], self.config.shift, generator)
        x = self.see(self.network, self.backbone.to_levels(stored, self.spec), generator)
        tokens, _ = self.read(self.network, x, generator)
        return self.find_transformer(self.network).nats(self.find_classes(batch, len(x)), tokens).mean()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return Muon with warm-up and cosine decay."""
        config = self.config
        trained = [p for p in self.network.parameters() if p.requires_grad]
        blocks = {id(p) for p in self.find_transformer(self.network).blocks.parameters() if p.ndim == 2}
        hidden, others = ([p for p in trained if (id(p) in blocks) is is_hidden] for is_hidden in (True, False))
        optimizer = Muon(
            hidden,
            others,
            lr=config.matrix_learning_rate,
            adam_lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: warmup_cosine(
                step, steps=config.steps, warmup=config.warmup, final=config.final_learning_rate
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def draw(self, network: Any, count: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> Tensor:
        """Draw tokens one after the other, and return the pixels' means as values, such as uint8 (N, C, H, W)."""
        predictor, first = self.find_transformer(network), self.find_classes(given, count)
        uniform = torch.rand(count, predictor.count, generator=generator, device=self.device)
        parts = [
            predictor.generate(first[rows], first[rows, None][:, :0], uniform[rows], self.config.temperature)
            for rows in torch.arange(count, device=self.device).split(AT_ONCE)
        ]
        painted = torch.cat([self.paint(network, *part) for part in parts])
        values: Tensor = self.backbone.from_levels(painted, self.spec)
        return values

    def go_on(
        self, network: Any, tokens: Tensor, generator: torch.Generator, given: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Draw what follows the first tokens (N, K) of images: all tokens (N, T), and probabilities (N, T - K, V).

        given: labels int64 (N,) of a conditional model; without them, a class is drawn by how likely the tokens are.
        """
        predictor = self.find_transformer(network)
        is_open = self.config.conditional and "labels" not in given
        first = self.draw_classes(predictor, tokens, generator) if is_open else self.find_classes(given, len(tokens))
        size = (len(tokens), predictor.count - tokens.size(1))
        uniform = torch.rand(size, generator=generator, device=self.device)
        return predictor.generate(first, tokens, uniform, self.config.temperature)

    def draw_classes(self, predictor: Network, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Draw classes, int64 (N,), of equal chances, as first tokens (N, K) of images leave them."""
        classes = torch.arange(predictor.classes, device=self.device)
        nats = [predictor.nats(each.expand(len(tokens)), tokens).sum(dim=1) for each in classes]
        chances = (-torch.stack(nats, dim=1)).softmax(dim=1)  # (N, classes)
        return torch.multinomial(chances, 1, generator=generator).squeeze(1)

    def observe(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return uint8 images (N, C, H, W) as the likelihood sees them: each pixel drawn black or white.

        `score` draws nothing more of what this returns.
        """
        return (self.see(self.kept, images, generator) * 255).byte()

    @torch.inference_mode()
    def score(
        self, images: Tensor, samples: int, generator: torch.Generator, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Score held-out uint8 images (N, C, H, W), in nats an image, of any class: that of the first token counts.

        A class costs as much as one of equally likely ones. Tokens are drawn once where they are drawn at all, so that
        more `samples` change nothing. Without classes the nats of tokens that are not drawn are exact.

        Returns:
            elbo: the negative log-likelihood, or a bound on it, float64 (N,); and what `describe` adds.
        """
        del samples
        network = self.kept.eval()
        predictor = self.find_transformer(network)
        classes = self.find_classes(given, len(images))
        total, codes, seen = [], [], []
        for indices in torch.arange(len(images)).split(AT_ONCE):
            x = self.see(network, images[indices].to(self.device), generator)
            tokens, entropy = self.read(network, x, generator)
            nats = predictor.nats(classes[indices], tokens).sum(dim=1) + math.log(predictor.classes) - entropy
            total.append(nats + self.score_rest(network, x, tokens))
            codes.append(nats)
            seen.append(tokens)
        nats = torch.cat(total)
        return {"elbo": nats} | self.describe(torch.cat(codes), torch.cat(seen))

    @abstractmethod
    def describe(self, nats: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Return more scores from the nats of the tokens less their entropy (N,) and the tokens (N, T)."""


class Model(Tokens):
    """Trains the network on the log-likelihood of each image, whose tokens are its patches."""

    def build(self, fields: Fields) -> nn.Module:
        """Return the network for images of these fields."""
        require(self.config, fields)
        _, self.height, width = fields[self.makes].shape
        return Network(self.config, 2**SIDE**2, self.count_classes(fields), self.height * width // SIDE**2)

    def find_transformer(self, network: Any) -> Network:
        """Return all of the network."""
        found: Network = network
        return found

    def see(self, network: Any, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Return uint8 images (B, C, H, W) drawn black and white, 0 or 1."""
        del network
        return binarize(levels, generator)

    def read(self, network: Any, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the tokens of binary images (B, C, H, W), int64 (B, T), and zeros (B,): there is no choice."""
        del network, generator
        return to_tokens(x), torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def paint(self, network: Any, tokens: Tensor, probabilities: Tensor) -> Tensor:
        """Return the images of tokens (N, T) that were drawn from probabilities (N, T, V): uint8 (N, C, H, W).

        A pixel is its mean given the patches above and to the left, as those that were drawn; a VAE's is its mean given
        the latent.
        """
        del network, tokens
        return to_means(probabilities, self.height)

    @torch.inference_mode()
    def complete(self, images: Tensor, known: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> Tensor:
        """Keep the upper `known` rows of uint8 images (N, C, H, W) and draw the others, given them and the class.

        given: labels int64 (N,) of a conditional model; without them, the class is drawn too.

        Raises:
            ValueError: if the rows end within a patch.
        """
        if known % SIDE or not 0 <= known < self.height:
            msg = f"known: expected rows of whole patches, a multiple of {SIDE} below {self.height}, got {known}"
            raise ValueError(msg)
        network: Any = self.kept.eval()
        images = images.to(self.device)
        tokens = to_tokens(binarize(images, generator))[:, : known * images.size(3) // SIDE**2]
        _, probabilities = self.go_on(network, tokens, generator, given)
        return torch.cat([images[:, :, :known], to_means(probabilities, self.height - known)], dim=2)

    def score_rest(self, network: Any, x: Tensor, tokens: Tensor) -> Tensor:
        """Return no nats, float64 (B,): the tokens are the image."""
        del network, tokens
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def describe(self, nats: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Return iw, the nats once more: they are exact, so that no importance-weighted bound is nearer."""
        del tokens
        return {"iw": nats.clone()}
