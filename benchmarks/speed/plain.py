"""The loss of the language model against a plain GPT-2 module, after equal steps and equal seconds."""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import artifacts
from pipeline.batches import Examples, Steps
from pipeline.layers.blocks import warmup_cosine
from speed.timing import Row, summarize, time_it
from speed.trainings import make, train_bare


def measure(steps: int = 500) -> Iterator[Row]:
    """Loss after equal steps, and after equal seconds, against a plain GPT-2-style module; three seeds."""
    equal_steps, equal_seconds, texts, times = [], [], [], []
    seeds = (0, 1, 2)
    for seed in seeds:
        model, examples = make("transformer", seed, steps=steps)
        config = model.config
        seconds = time_it(lambda: list(train_bare(model, examples, steps)))  # noqa: B023
        ours = validate(model.network, config.context)
        sizes = (config.layers, config.heads, config.width, config.context, model.network.head.out_features)
        torch.manual_seed(seed)
        plain = PlainGPT(*sizes)
        plain_seconds = train_plain(plain, examples, steps, config)
        equal_steps.append(ours / validate(plain, config.context))
        torch.manual_seed(seed)
        longer = PlainGPT(*sizes)
        longer_seconds = train_plain(longer, examples, round(steps * seconds / plain_seconds), config)
        equal_seconds.append(ours / validate(longer, config.context))
        texts.append(f"{ours:.3f}")
        times.append((seconds, plain_seconds, longer_seconds))
    first, second, third = (statistics.median(way) for way in zip(*times, strict=True))
    title = f"validation loss after {steps} steps at nanoGPT's laptop size, against a plain GPT-2 module with AdamW"
    about: dict[str, Any] = {"count": f"{steps} steps", "seeds": seeds}
    detail = f"{', '.join(texts)} nats"
    yield summarize(
        "loss_equal_steps", f"{title}, equal steps", "< 1", equal_steps, detail, seconds=(first, second), **about
    )
    yield summarize(
        "loss_equal_seconds", f"{title}, equal seconds", "< 1", equal_seconds, seconds=(first, third), **about
    )


class PlainGPT(nn.Module):
    """GPT-2's layout as nanoGPT has it: learned positions, LayerNorm, GELU, biases, tied head, fused attention."""

    def __init__(self, layers: int, heads: int, width: int, context: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        block = partial(
            nn.TransformerEncoderLayer, width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.ModuleList(block() for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.mask: Tensor
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T) to logits (B, T, V)."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.size(1)]
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(x))


def train_plain(model: PlainGPT, examples: Examples, steps: int, config: Any) -> float:
    """Train by nanoGPT's laptop recipe: AdamW, 1e-3 to 1e-4 by a cosine after 100 steps, clipped at 1."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    start = time.perf_counter()
    for step, batch in enumerate(Steps(examples, steps=steps, batch_size=config.batch_size, seed=0)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * warmup_cosine(step, steps=steps, warmup=100, final=0.1)
        loss = F.cross_entropy(model(batch["inputs"]).flatten(0, 1), batch["targets"].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return time.perf_counter() - start


@torch.inference_mode()
def validate(network: nn.Module, context: int) -> float:
    """Return the nats a character over the whole validation text, in disjoint windows."""
    tokens = artifacts.read_split("shakespeare", "validation")["tokens"].long()
    windows = tokens[: (len(tokens) - 1) // context * context].view(-1, context)
    targets = tokens[1 : windows.numel() + 1].view(-1, context)
    network.eval()
    parts = zip(windows.split(256), targets.split(256), strict=True)
    total = sum(float(F.cross_entropy(network(x).flatten(0, 1), y.flatten(), reduction="sum")) for x, y in parts)
    return total / windows.numel()
