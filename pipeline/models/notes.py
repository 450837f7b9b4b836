"""A transformer over the notes of several voices, frame by frame, from the highest voice to the lowest.

Run with `dvc repro train@notes`. It is transformer.py (Vaswani et al. 2017), with one departure: each token also has a
learnt embedding of its place in the bar, which tells the voice and the beat. Therefore each window begins with a bar.
A piece is END, its notes and END, and no window has tokens of two pieces.

Dimensions: B batch, T tokens, D width, F frames and V voices of a piece.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError
from pipeline.kinds import Fields, find_field
from pipeline.kinds.music import BAR, END, VOCABULARY, to_tokens
from pipeline.layers.blocks import make_average, token_nats
from pipeline.layers.decoding import Decoder, choose, require_room
from pipeline.models import transformer
from pipeline.randomness import seeded

LEARNS = ("music",)
FRAMES = 16 * BAR  # of a sample, if nothing else is said


class Config(transformer.Config):
    """Hyper-parameters of the transformer; its context is in tokens, one for each note."""


def describe_scores(config: Any) -> dict[str, Any]:
    """Return what the scores are of, for the protocol."""
    return {"of": "each note and the end, given those before it in a window of the piece", "context": config.context}


def require(config: Any, fields: Fields) -> None:
    """Refuse data that are no music, and a context that is not of whole bars.

    Raises:
        ArtifactError: with a context that would do.
    """
    spec: Any = fields[find_field(fields, LEARNS)]
    bar = BAR * spec.voices
    if config.context % bar or config.context < 2 * bar:
        would = max(2, config.context // bar) * bar
        msg = f"context: expected a multiple of {bar} tokens, one bar, from two bars on, got {config.context}; "
        raise ArtifactError(msg + f"{would} would do")


class Network(transformer.Network):
    """The language model with places: tokens (B, T) int64, from the beginning of a bar, to logits (B, T, V)."""

    def __init__(self, config: Config, vocabulary: int, bar: int) -> None:
        super().__init__(config, vocabulary)
        self.place = nn.Embedding(bar, config.width)  # standard normal, as the tokens' embedding

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of each next token.

        Raises:
            ValueError: if there are more tokens than the context.
        """
        length = tokens.size(1)
        require_room(length, self.rotation.size(1))
        places = torch.arange(length, device=tokens.device) % self.place.num_embeddings
        x = self.embedding(tokens) + self.place(places)  # (B, T) -> (B, T, D)
        for block in self.blocks:
            x = block(x, self.rotation[:, :length])
        return self.head(self.norm(x))  # (B, T, D) -> (B, T, V)


class PlacedDecoder:
    """The decoder of transformer.py, which is fed tokens with their places: each pair has a row of its own."""

    def __init__(self, network: Network, count: int) -> None:
        self.decoder = Decoder(network, count)
        rows = network.place.weight.float()[:, None] + network.embedding.weight.float()  # (bar, V, D)
        self.bar, self.vocabulary, _ = rows.shape
        self.decoder.embedding = rows.flatten(0, 1)

    def feed(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, V) after tokens (B, T) that follow those fed before."""
        start = self.decoder.length
        places = torch.arange(start, start + tokens.size(1), device=tokens.device) % self.bar
        return self.decoder.feed(tokens + self.vocabulary * places)


class Model(transformer.Model):
    """Trains and samples the network."""

    def __init__(self, config: Config, fields: Fields, seed: int) -> None:
        LightningModule.__init__(self)  # the parent's would make the network without places
        require(config, fields)
        self.config = config
        self.seed = seed
        self.makes = find_field(fields, LEARNS)
        spec: Any = fields[self.makes]
        self.voices = spec.voices
        self.bar = BAR * spec.voices
        with seeded(seed, "weights"):
            self.network = Network(config, VOCABULARY, self.bar)
        self.average = make_average(self.network, config.ema) if config.ema else None
        self.compiled = None

    @torch.inference_mode()
    def sample(  # type: ignore[override]
        self,
        count: int,
        generator: torch.Generator,
        given: Mapping[str, Tensor],
        *,
        frames: int = FRAMES,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        kept: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Draw `count` pieces of at most `frames` frames, uint8 (N, F, V), with END after their last frame.

        Each step feeds one token and reads the earlier ones from the cache. When the context is full, the bars in its
        last half are fed again.

        Args:
            count: N.
            generator: source of the notes, on the model's device.
            given: nothing.
            frames: F.
            temperature: divides the logits; 0 takes the most likely note.
            top_k: most likely notes kept; 0 keeps all.
            top_p: probability mass kept; 1 keeps all.
            kept: notes of all pieces, uint8 (F, V), with END in the places that are drawn. These pieces have F frames.
        """
        del given
        context, voices = self.config.context, self.voices
        tokens = torch.full((count, 1), END, device=self.device)
        decoder = PlacedDecoder(cast("Network", self.kept.eval()), count)
        fresh = tokens
        known = None if kept is None else kept.flatten().tolist()
        for place in range(frames * voices):
            if decoder.decoder.length + fresh.size(1) > context:
                decoder.decoder.length = 0
                start = tokens.size(1) - context // 2
                fresh = tokens[:, start + -start % self.bar :]
            logits = decoder.feed(fresh)  # (N, V)
            if known is not None and known[place] != END:
                fresh = torch.full_like(tokens[:, :1], known[place])
            else:
                # A piece ends between two frames only, and it has one at least.
                if place % voices or not place or known is not None:
                    logits[:, END] = -torch.inf
                fresh = choose(logits, generator, temperature, top_k, top_p)
            if place:
                fresh[tokens[:, -1] == END] = END
            tokens = torch.cat([tokens, fresh], dim=1)
        return {self.makes: tokens[:, 1:].view(count, frames, voices).byte()}

    @torch.inference_mode()
    def score(self, piece: Tensor, stride: int) -> Tensor:
        """Cross-entropy in nats of each note of a piece (F, V) and of its end, float64 (F V + 1,), each exactly once.

        Windows of `context` tokens advance by `stride`, rounded down to bars; only targets that no earlier window
        scored count. The first window begins with the piece.

        Raises:
            ValueError: if the stride is not between 1 and the context.
        """
        context = self.config.context
        if not 1 <= stride <= context:
            msg = f"stride must be between 1 and the context of {context}, got {stride}"
            raise ValueError(msg)
        stride = max(self.bar, stride // self.bar * self.bar)
        network = self.kept.eval()
        tokens = to_tokens(piece[None].to(self.device))  # (1, F V + 2)
        losses: list[Tensor] = []
        done, start = 0, 0  # targets that are scored; first input of the window
        while done < tokens.size(1) - 1:
            window = tokens[:, start : start + context + 1]
            nats = token_nats(network(window[:, :-1]), window[:, 1:])
            losses.append(nats[0, done - start :])
            done += len(losses[-1])
            start += stride
        return torch.cat(losses)
