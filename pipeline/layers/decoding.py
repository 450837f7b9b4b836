"""Generation by a language model: a decoder that remembers keys and values, and the choice of the next token.

Dimensions: B batch, T tokens, P positions of the context, D width, H heads, K = D / H head width, V vocabulary,
L blocks.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = torch.finfo(torch.float32).eps  # of nn.RMSNorm


def require_room(tokens: int, context: int) -> None:
    """Raise ValueError if there are more tokens than the context."""
    if tokens > context:
        msg = f"the context is {context} tokens, got {tokens}"
        raise ValueError(msg)


class Decoder:
    """The transformer's network for generation: the same logits up to rounding, with as few operators as possible.

    A single token costs operator calls and one pass over the weights, not arithmetic. So the gains of
    norms are folded into the matrices that follow them, units of a query or key that rotate together are neighbours, as
    the parts of a complex number, and keys and values are written into one tensor. Weights of 16 bits are read as
    float32.
    """

    @torch.inference_mode()
    def __init__(self, network: Any, count: int) -> None:
        blocks = list(network.blocks)
        width = network.embedding.embedding_dim
        self.embedding = network.embedding.weight.float()
        self.heads = blocks[0].heads
        rotation = network.rotation.float()
        size, context = width // self.heads, rotation.size(1)
        neighbours = torch.arange(size).view(2, -1).T.flatten()  # 0, K / 2, 1, K / 2 + 1, ...

        def transpose(layer: nn.Linear) -> Tensor:
            return layer.weight.float().T.contiguous()

        def fold(norm: nn.RMSNorm, layer: nn.Linear) -> Tensor:
            return transpose(layer) * (norm.weight.float() * width**0.5)[:, None]

        def reorder(qkv: Tensor) -> Tensor:
            parts = qkv.view(width, 3, self.heads, size)
            return torch.cat([parts[:, :2, :, neighbours], parts[:, 2:]], dim=1).view(qkv.shape)

        self.matrices = [
            (
                reorder(fold(block.attention_norm, block.qkv)),  # (D, 3 D)
                transpose(block.project),  # (D, D)
                fold(block.mlp_norm, block.expand),  # (D, 4 D)
                transpose(block.contract),  # (4 D, D)
            )
            for block in blocks
        ]
        self.head = fold(network.norm, network.head)  # (D, V)
        gains = [torch.stack([block.query_norm.weight, block.key_norm.weight])[:, neighbours] for block in blocks]
        self.gains = [gain.float().view(2, 1, 1, 1, size) * size**0.5 for gain in gains]
        self.turns = torch.complex(*rotation)  # (P, K / 2)
        self.memory = rotation.new_zeros(len(blocks), 2, count, self.heads, context, size)  # keys and values
        self.length = 0  # tokens in the memory; 0 starts again
        # A norm's epsilon, as the second leg of hypot: sqrt(sum of squares + N epsilon).
        self.legs = {number: self.head.new_tensor((number * EPSILON) ** 0.5) for number in (width, size)}

    def norm(self, x: Tensor) -> Tensor:
        """Return what RMSNorm divides x (..., N) by, times the root of N: (..., 1)."""
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.legs[x.size(-1)])

    @torch.inference_mode()
    def feed(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, V) after tokens (B, T) that follow those fed before.

        Raises:
            ValueError: if they are more than the context together.
        """
        count, added = tokens.shape
        start, end = self.length, self.length + added
        require_room(end, self.memory.size(-2))
        self.length = end
        mask = None  # one token sees all that is held; several see it, and those before them
        if start and added > 1:
            mask = torch.ones(added, end, dtype=torch.bool, device=tokens.device).tril(start)
        turns = self.turns[start:end]
        slots = self.memory[..., start:end, :].unbind()
        held = self.memory[..., :end, :].flatten(0, 1).unbind()  # keys and values in turn
        x = F.embedding(tokens, self.embedding).flatten(0, 1)  # (B T, D)
        qkv = x.new_empty(len(x), 3 * x.size(1))
        parts = qkv.view(count, added, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, T, K)
        queries, pair, kept = parts[0], parts[:2], parts[1:]
        pairs = torch.view_as_complex(pair.unflatten(-1, (-1, 2)))  # (2, B, H, T, K / 2)
        for index, (attend, project, expand, contract) in enumerate(self.matrices):
            torch.mm(x / self.norm(x), attend, out=qkv)
            pair.mul_(self.gains[index] / self.norm(pair))
            pairs.mul_(turns)
            slots[index].copy_(kept)
            keys, values = held[2 * index : 2 * index + 2]
            out = F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=not start)
            x.addmm_(out.transpose(1, 2).reshape(x.shape), project)
            hidden = torch.mm(x / self.norm(x), expand).relu_()
            x.addmm_(hidden.mul_(hidden), contract)
        x = x.view(count, added, -1)[:, -1]
        return torch.mm(x / self.norm(x), self.head)


def choose(logits: Tensor, generator: torch.Generator, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Draw one token from each row of logits (B, V): temperature, then top-k, then nucleus (Holtzman et al. 2020).

    Args:
        logits: unnormalised log-probabilities, float (B, V).
        generator: source of randomness, on the logits' device.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches p; 1 keeps all.

    Returns:
        Tokens, int64 (B, 1).
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    ordered, tokens = (logits.float() / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered[:, top_k:] = -math.inf
    probabilities = ordered.softmax(dim=-1)
    if top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0)
    picked = torch.multinomial(probabilities, 1, generator=generator)
    return tokens.gather(-1, picked)
