"""A transformer for velocities of images: DiT with adaLN-Zero (Peebles and Xie 2023).

Departures: positions are learnt, heads are of 32 units, and the last layer sees what the first one saw.

Dimensions: B batch, C channels, H W image, T patches, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.layers.conditioning import Condition

PATCH = 4  # pixels of a side
HEAD = 32  # units of an attention head; widths are multiples


class Block(nn.Module):
    """Attention, then a perceptron, each scaled, shifted and gated by the condition; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.first_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mix = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.second_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return tokens of the shape of x (B, T, D)."""
        scale, shift, gate, next_scale, next_shift, next_gate = self.modulation(condition)[:, None].chunk(6, dim=-1)
        hidden = self.mix(self.first_norm(x) * (1 + scale) + shift)  # (B, T, 3 D)
        query, key, value = hidden.unflatten(-1, (3, self.heads, HEAD)).permute(2, 0, 3, 1, 4)  # (B, heads, T, HEAD)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + gate * self.project(attended)
        hidden = self.second_norm(x) * (1 + next_scale) + next_shift
        return x + next_gate * self.narrow(F.gelu(self.widen(hidden), approximate="tanh"))


class DiT(nn.Module):
    """Maps images (B, C', H, W), times, spans and labels (B,) to velocities (B, C, H, W)."""

    def __init__(
        self, inputs: int, outputs: int, sides: tuple[int, int], width: int, blocks: int, classes: int
    ) -> None:
        super().__init__()
        patches = (sides[0] // PATCH) * (sides[1] // PATCH)
        self.condition = Condition(width, classes)
        self.enter = nn.Linear(inputs * PATCH**2, width)
        self.places = nn.Parameter(0.02 * torch.randn(patches, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, outputs * PATCH**2)
        self.pass_by = nn.Linear(inputs * PATCH**2, outputs * PATCH**2)  # the noise has more numbers than D
        for layer in (self.modulation, self.leave, self.pass_by):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, times: Tensor, spans: Tensor, labels: Tensor | None) -> Tensor:
        """Return velocities (B, C, H, W)."""
        condition = self.condition(times, spans, labels)
        patches = F.pixel_unshuffle(x, PATCH)  # (B, C' PATCH^2, H / PATCH, W / PATCH)
        tokens = patches.flatten(2).mT  # (B, T, C' PATCH^2)
        hidden = self.enter(tokens) + self.places
        for block in self.blocks:
            hidden = block(hidden, condition)
        scale, shift = self.modulation(condition)[:, None].chunk(2, dim=-1)
        found = self.leave(self.norm(hidden) * (1 + scale) + shift) + self.pass_by(tokens)
        return F.pixel_shuffle(found.mT.unflatten(2, patches.shape[2:]), PATCH)
