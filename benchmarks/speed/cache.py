"""Generation by the decoder, which remembers keys and values, against whole passes."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from speed.timing import Row, compare, time_it
from speed.trainings import LARGE, count_millions, make


def measure() -> Iterator[Row]:
    """Generation by the decoder, which remembers keys and values, against whole passes: one text and 16, two sizes."""
    yield compare_cache("uncached_over_cached", 1)
    yield compare_cache("uncached_over_cached_16", 16)
    yield compare_cache("uncached_over_cached_large", 1, **LARGE)
    yield compare_cache("uncached_over_cached_large_16", 16, **LARGE)


def compare_cache(name: str, count: int, length: int = 256, **size: int) -> Row:
    """Measure one size of the language model, drawing so many texts at once."""
    model, _ = make("transformer", context=length + 1, **size)
    model.eval()
    start = torch.zeros(1, dtype=torch.int64)

    @torch.inference_mode()
    def without() -> None:
        tokens = start.expand(count, 1)
        for _ in range(length):
            tokens = torch.cat([tokens, model.network(tokens)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)

    def with_cache() -> Tensor:
        prompt = {"prompt": start}
        return model.sample(count, torch.Generator(), prompt, length=length, temperature=0.0)[model.makes]

    ways = partial(time_it, without), partial(time_it, with_cache)
    texts = "one text" if count == 1 else f"{count} texts at once"
    title = f"{length} tokens of {texts} by {count_millions(model)} million parameters: whole passes against KV cache"
    return compare(name, title, ">= 10", ways, count=f"{count * length:,} tokens", repeats=3 if count > 1 else 5)
