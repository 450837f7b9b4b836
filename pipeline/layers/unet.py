"""A small U-Net (Ronneberger et al. 2015) for velocities of images, conditioned as that of Dhariwal and Nichol (2021).

Departures: it works on pixel-unshuffled images and halves them once more, so that with patches of 2x2 pixels all
convolutions are at half and at a quarter of the resolution, where they are cheap; there is no attention.

Dimensions: B batch, C channels, H W image, D width, E width of the condition.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.layers.conditioning import Condition, modulate

GROUPS = 8  # of GroupNorm; widths are multiples


class Block(nn.Module):
    """x + conv(silu(modulate(norm(conv(silu(norm(x))))))), same shape (B, D, H, W); starts as the identity."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(GROUPS, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second_norm = nn.GroupNorm(GROUPS, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * width)
        for parameter in (*self.second.parameters(), *self.modulation.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        hidden = self.second_norm(self.first(F.silu(self.first_norm(x))))
        scale, shift = self.modulation(condition).chunk(2, dim=1)
        return x + self.second(F.silu(modulate(hidden, scale, shift)))


class UNet(nn.Module):
    """Maps images (B, C', H, W), times, spans and labels (B,) to velocities (B, C, H, W).

    One block before and after sees patches of patch x patch pixels as one; `blocks` blocks of twice the width are at
    half of that resolution.
    """

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int, classes: int, patch: int = 2) -> None:
        super().__init__()
        self.patch = patch
        embedded = 4 * width
        self.condition = Condition(embedded, classes)
        self.enter = nn.Conv2d(patch**2 * inputs, width, 3, padding=1)
        self.before = Block(width, embedded)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(Block(2 * width, embedded) for _ in range(blocks))
        self.up = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.after = Block(width, embedded)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.leave = nn.Conv2d(width, patch**2 * outputs, 3, padding=1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor, times: Tensor, spans: Tensor, labels: Tensor | None) -> Tensor:
        """Return velocities (B, C, H, W)."""
        condition = self.condition(times, spans, labels)
        high = self.before(self.enter(F.pixel_unshuffle(x, self.patch)), condition)  # (B, D, H / patch, W / patch)
        low = self.down(high)  # (B, 2 D, H / (2 patch), W / (2 patch))
        for block in self.middle:
            low = block(low, condition)
        high = self.join(torch.cat([high, F.pixel_shuffle(self.up(low), 2)], dim=1))
        high = self.after(high, condition)
        return F.pixel_shuffle(self.leave(F.silu(self.norm(high))), self.patch)
