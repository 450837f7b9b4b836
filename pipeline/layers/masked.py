"""A masked convolution as the prior of the codes of an image (van den Oord et al. 2016, "Pixel recurrent networks").

Codes are predicted row by row, each from those above and to the left of it, all in one pass. It is small, so that
the encoder of the codes can learn with it, and is told the cost of its codes.

Dimensions: B batch, h w codes of an image, L numbers of a code, K codes there are, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.layers.blocks import pick
from pipeline.layers.quantization import from_codes

REACH = 3  # codes that the first convolution sees to each side, and above


class MaskedConv(nn.Conv2d):
    """A convolution that sees the places above and to the left, and with `own` its own."""

    mask: Tensor

    def __init__(self, channels: int, width: int, side: int, *, own: bool) -> None:
        super().__init__(channels, width, side, padding=side // 2)
        place = torch.arange(side * side)
        seen = place < side * side // 2 + own
        self.register_buffer("mask", seen.view(side, side).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, width, h, w)."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Block(nn.Module):
    """x + conv(silu(conv(silu(x)))), whose first convolution is masked."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = MaskedConv(width, width, 3, own=True)
        self.second = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x, (B, D, h, w)."""
        return x + self.second(F.silu(self.first(F.silu(x))))


class MaskedPrior(nn.Module):
    """Chances of each code given those before it; all are equally likely at the start."""

    def __init__(self, numbers: int, count: int, size: tuple[int, int], width: int, blocks: int) -> None:
        super().__init__()
        self.size = size
        self.first = MaskedConv(numbers, width, 2 * REACH + 1, own=False)
        self.places = nn.Parameter(torch.zeros(width, *size))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)), nn.SiLU())
        self.head = nn.Conv2d(width, count, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, values: Tensor) -> Tensor:
        """Map the values of codes in [-1, 1] to log-probabilities of the code at each place, float32 (B, h w, K).

        The gradient reaches the values that each code is predicted from.

        values: (B, h, w, L), or the upper rows of them.
        """
        hidden = self.blocks(self.first(values.permute(0, 3, 1, 2)) + self.places[:, : values.size(1)])
        return self.head(hidden).float().flatten(2).transpose(1, 2).log_softmax(dim=-1)

    def nats(self, codes: Tensor, levels: Tensor) -> Tensor:
        """Return the nats of each of the codes int64 (B, h w), given those before it, float64 (B, h w)."""
        likely = self(from_codes(codes.view(-1, *self.size), levels))
        return -likely.gather(2, codes[:, :, None]).squeeze(2).double()

    @torch.inference_mode()
    def draw(self, uniform: Tensor, levels: Tensor) -> Tensor:
        """Draw the codes of images, int64 (B, h w).

        uniform: numbers in [0, 1), float (B, h w), each of which decides on one code.
        """
        codes = torch.zeros(uniform.shape, dtype=torch.int64, device=uniform.device)
        for place, number in enumerate(uniform.T):
            rows = place // self.size[1] + 1  # none below has a say
            values = from_codes(codes.view(-1, *self.size)[:, :rows], levels)
            codes[:, place] = pick(self(values)[:, place].exp(), number)
        return codes
