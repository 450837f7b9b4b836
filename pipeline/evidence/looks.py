"""Pictures of what a model has learnt, drawn from the model itself: walks between two samples, attention to a text.

A walk needs a model with `decode`: docs/extend.md. Attention needs a tokenizer and a network that attends.
"""

import base64
import json
import math
from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor

from pipeline import plugins
from pipeline.evidence.attention import capture_attention
from pipeline.formats.tokenizers import TextTokenizer
from pipeline.kinds import Exhibit
from pipeline.randomness import make_generator, normal
from pipeline.weights import Loaded

WALKS, STEPS = 8, 8  # of an exhibit
SENTENCE = (24, 64)  # characters of the text whose attention is shown
SEARCHED = 5000  # tokens in which a sentence is looked for


def find_decoder(name: str) -> ModuleType | None:
    """Return the plug-in of a model that turns latents into values, if it does."""
    module = plugins.load("models", name)
    return module if hasattr(module, "decode") else None


def find_latent(loaded: Loaded, decoder: ModuleType) -> tuple[int, ...]:
    """Return the shape Z of a latent: a vector of `config.latent` numbers, unless the plug-in says another one."""
    shape: tuple[int, ...] = (
        decoder.find_latent(loaded.model) if hasattr(decoder, "find_latent") else (loaded.config.latent,)
    )
    return shape


def draw_latent(loaded: Loaded, decoder: ModuleType, seed: int) -> Tensor:
    """Return the latent of one sample, standard normal float32 (1, *Z)."""
    generator = make_generator(seed, "walk", device=loaded.model.device)
    return normal(1, *find_latent(loaded, decoder), generator=generator)


def walk(first: Tensor, last: Tensor, places: Tensor) -> Tensor:
    """Return the latents (N, *Z) at places (N,) in [0, 1] of the way from `first` to `last`, (1, *Z) each.

    The sum of the squared weights is 1, so that each point of the way is as likely a sample as its ends are: a straight
    line passes near the origin, where in many dimensions no sample is.
    """
    angles = (places.to(first) * (math.pi / 2)).view(-1, *[1] * (first.ndim - 1))
    return angles.cos() * first + angles.sin() * last


def show_walks(loaded: Loaded, decoder: ModuleType) -> Exhibit | None:
    """Show WALKS walks, one per row, each of one class.

    None where a single value shows nothing, or of a model that is given more than its pool has.
    """
    if hasattr(loaded.kind, "TOGETHER") or set(loaded.model.given) - loaded.pool.values.keys():
        return None
    given = loaded.pool.draw(WALKS, make_generator(0, "walks"))
    places = torch.linspace(0, 1, STEPS)
    ends = [draw_latent(loaded, decoder, seed) for seed in range(2 * WALKS)]
    rows = [decode(loaded, decoder, walk(ends[2 * row], ends[2 * row + 1], places), given, row) for row in range(WALKS)]
    exhibit: Exhibit = loaded.kind.show("interpolations", torch.cat(rows), loaded)
    return exhibit


def decode(loaded: Loaded, decoder: ModuleType, latents: Tensor, given: Mapping[str, Tensor], row: int = 0) -> Tensor:
    """Return the values of latents (N, *Z), on the CPU, each given the same row of the given fields."""
    shared = {name: values[row : row + 1].expand(len(latents), *values.shape[1:]) for name, values in given.items()}
    values: Tensor = decoder.decode(loaded.model, latents, shared)
    return values.cpu()


def show_attention(loaded: Loaded, tokens: Tensor) -> Exhibit | None:
    """Show how much each token of a sentence of held-out `tokens` (N,) looks at each earlier one; None without any.

    The exhibit is JSON: tokens as texts, layers L, heads H, and weights as bytes (L, H, T, T) in base64, 255 for 1.
    """
    if loaded.tokenizer is None:
        return None
    chosen = pick_sentence(loaded.tokenizer, tokens)[: loaded.config.context]
    weights = capture_attention(loaded.model.kept.eval(), chosen.long().to(loaded.model.device))
    if weights is None:
        return None
    levels = (weights * 255).round().byte()
    content = {
        "tokens": [loaded.tokenizer.decode([token]) for token in chosen.tolist()],
        "layers": levels.size(0),
        "heads": levels.size(1),
        "weights": base64.b64encode(levels.contiguous().numpy().tobytes()).decode(),
    }
    return Exhibit("attention", ".json", json.dumps(content).encode())


def pick_sentence(tokenizer: TextTokenizer, tokens: Tensor) -> Tensor:
    """Return the tokens of the first line that is a sentence, by its length and blanks; else the first tokens."""
    least, most = SENTENCE
    for line in tokenizer.decode(tokens[:SEARCHED].tolist()).splitlines()[1:]:
        text = line.strip()
        if least <= len(text) <= most and text.count(" ") >= 3 and text[0].isupper():
            return torch.tensor(tokenizer.encode(text), dtype=torch.int64)
    return tokens[:most]
