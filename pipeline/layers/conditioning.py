"""What a flow's network is told besides the values: time, length of the step, class.

Dimensions: B batch, E width of the condition.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.layers.ode import to_place

CYCLES = 8  # waves of each number; the fastest one has 4 cycles in [0, 1]: the network shall be smooth in time


def embed_waves(values: Tensor) -> Tensor:
    """Return sines and cosines (B, 2 CYCLES) of numbers in [0, 1], (B,), from a quarter of a cycle to 4 cycles."""
    angles = values[:, None] * (torch.logspace(-2, 2, CYCLES, base=2, device=values.device) * 2 * math.pi)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Condition(nn.Module):
    """Maps time and span (B,), and labels (B,), to vectors (B, E).

    The span is the length of the step that the network shall predict: 0 for a velocity. Its part starts as zero, so
    that a network that has learnt velocities is a start for one that learns steps.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.time = nn.Linear(4 * CYCLES, width)
        self.span = nn.Linear(2 * CYCLES, width)
        self.last = nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None  # the last one: no label
        nn.init.zeros_(self.span.weight)
        nn.init.zeros_(self.span.bias)

    def forward(self, times: Tensor, spans: Tensor, labels: Tensor | None) -> Tensor:
        """Return vectors (B, E)."""
        waves = torch.cat([embed_waves(times), embed_waves(to_place(times))], dim=1)  # near the data, times differ more
        hidden = self.time(waves) + self.span(embed_waves(spans))
        if self.label is not None:
            hidden = hidden + self.label(labels)
        return F.silu(self.last(F.silu(hidden)))


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return x (1 + scale) + shift; scale and shift (B, D) fit x (B, D, ...) of any further dimensions."""
    while scale.ndim < x.ndim:
        scale, shift = scale[..., None], shift[..., None]
    return x * (1 + scale) + shift
