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


def normalize(x: Tensor) -> Tensor:
    """Divide x (..., N) by the root of its sum of squares and N epsilon: RMSNorm without its gain and the root of N."""
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return x * squares.add_(x.size(-1) * EPSILON).rsqrt_()


class Decoder:
    """The transformer's network for generation: its logits but for rounding, in as few operators as possible.

    A single token costs the calls of operators, not their arithmetic. So the gains of norms stand in the matrices and
    turns that follow them, and keys and values are written into one tensor.
    """

    @torch.inference_mode()
    def __init__(self, network: Any, count: int) -> None:
        blocks = list(network.blocks)
        width = network.embedding.embedding_dim
        self.embedding = network.embedding
        self.heads = blocks[0].heads
        size, context = width // self.heads, network.rotation.size(1)

        def fold(norm: nn.RMSNorm, layer: nn.Linear) -> Tensor:
            return (layer.weight * norm.weight * width**0.5).T.contiguous()

        self.matrices = [
            (
                fold(block.attention_norm, block.qkv),  # (D, 3 D)
                block.project.weight.T.contiguous(),  # (D, D)
                fold(block.mlp_norm, block.expand),  # (D, 4 D)
                block.contract.weight.T.contiguous(),  # (4 D, D)
            )
            for block in blocks
        ]
        self.head = fold(network.norm, network.head)  # (D, V)
        # Of queries and of keys: x turned = x * cosines + x rolled by half * sines, each times the gain of its unit.
        cos, sin = network.rotation
        cosines, sines = torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)  # (P, K)
        turns = []
        for block in blocks:
            gains = torch.stack([block.query_norm.weight, block.key_norm.weight])[:, None] * size**0.5  # (2, 1, K)
            turns += [gains * cosines, gains.roll(size // 2, -1) * sines]
        self.turns = torch.stack(turns).view(-1, 2, 1, 1, context, size)  # (2 L, 2, 1, 1, P, K)
        self.memory = cos.new_zeros(len(blocks), 2, count, self.heads, context, size)  # keys and values
        self.length = 0  # tokens in the memory; 0 starts anew

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
        turns = self.turns[..., start:end, :].unbind()
        slots = self.memory[..., start:end, :].unbind()
        held = self.memory[..., :end, :].unbind()
        x = self.embedding(tokens).flatten(0, 1)  # (B T, D)
        for index, (qkv, project, expand, contract) in enumerate(self.matrices):
            parts = (normalize(x) @ qkv).view(count, added, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, T, K)
            pair = parts[:2]  # queries and keys
            unit = normalize(pair)
            cosines, sines = turns[2 * index : 2 * index + 2]
            torch.addcmul(unit * cosines, unit.roll(unit.size(-1) // 2, -1), sines, out=pair)
            slots[index].copy_(parts[1:])
            keys, values = held[index].unbind()
            out = F.scaled_dot_product_attention(parts[0], keys, values, mask, is_causal=not start)
            x += out.transpose(1, 2).reshape(x.shape) @ project
            hidden = (normalize(x) @ expand).relu_()
            x += hidden.square_() @ contract
        return normalize(x.view(count, added, -1)[:, -1]) @ self.head


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
