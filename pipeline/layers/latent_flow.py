"""A sampler of latent vectors that is learned: flow matching (Lipman et al. 2023) from normal noise to latents.

The latents of a trained VAE do not fill its prior: many draws of the prior decode to images of no kind. A flow that
learns the aggregate posterior, the mean of q(z | x) over the data, draws latents that the decoder knows (Dai and Wipf
2019, "Diagnosing and Enhancing VAE Models"). The path is x_t = (1 - t) x_0 + t x_1 from noise x_0 to a latent x_1 in
units of the aggregate posterior. Times are logit-normal (Esser et al. 2024): the ends of the path are easy.

Dimensions: B batch, K draws per example, Z latent, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 16  # of the embedded time, 1/2 to 8 cycles over the path
DECAY = 0.99  # of the running moments, per step


class Block(nn.Module):
    """x + gate * mlp(norm(x) * (1 + scale) + shift), x (B, K, D), by a condition (B, D); starts as the identity.

    The adaptive normalisation of Peebles and Xie 2023 ("DiT", adaLN-Zero).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        scale, shift, gate = self.modulation(condition)[:, None].chunk(3, dim=-1)  # (B, 1, D) each
        return x + gate * self.layers(self.norm(x) * (1 + scale) + shift)


class LatentFlow(nn.Module):
    """The velocity of the path, and the first two moments of the latents' distribution, (Z,), as running averages."""

    cycles: Tensor
    mean: Tensor
    square: Tensor
    updates: Tensor

    def __init__(self, size: int, width: int, blocks: int, classes: int = 0) -> None:
        super().__init__()
        self.register_buffer("cycles", torch.logspace(-1, 3, FREQUENCIES, base=2), persistent=False)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("square", torch.ones(size))
        self.register_buffer("updates", torch.zeros(()))
        self.first = nn.Linear(size, width)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation (Z,) of the aggregate posterior."""
        return (self.square - self.mean.square()).clamp(min=1e-8).sqrt()

    @torch.no_grad()
    def observe(self, moments: Tensor) -> None:
        """Move the running moments towards those of a batch of posteriors, (2, Z): see `find_moments`."""
        moments = moments.to(self.mean.dtype)  # the encoder's may be of half precision
        weight = 1 - ((1 + self.updates) / (10 + self.updates)).clamp(max=DECAY)
        self.mean.lerp_(moments[0], weight)
        self.square.lerp_(moments[1], weight)
        self.updates += 1

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the velocity (B, K, Z) at x (B, K, Z) and t (B,) in [0, 1], for labels int64 (B,) if it has classes.

        The network adds to the velocity of a normal distribution, which is known: d/dt of E x_1 - x_0 given x_t.
        """
        angles = 2 * math.pi * t[:, None] * self.cycles
        condition = self.time(torch.cat([angles.cos(), angles.sin()], dim=1))
        if self.label is not None:
            condition = condition + self.label(labels)
        condition = F.silu(condition)
        h = self.first(x)
        for block in self.blocks:
            h = block(h, condition)
        normal = (2 * t - 1) / (t.square() + (1 - t).square())
        return normal[:, None, None] * x + self.last(self.norm(h))

    def loss(self, z: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean squared error of the velocity from noise (B, K, Z) to latents z (B, K, Z) at times t (B,)."""
        target = (z.to(self.mean.dtype) - self.mean) / self.deviation
        x = torch.lerp(noise, target, t[:, None, None])
        return (self(x, t, labels) - (target - noise)).square().mean()

    def draw(self, noise: Tensor, steps: int, labels: Tensor | None = None) -> Tensor:
        """Map standard normal noise (N, Z) to latents (N, Z) by Heun's method, of two evaluations per step."""
        x, size = noise[:, None], 1 / steps
        for step in range(steps):
            t = noise.new_full((len(noise),), step * size)
            slope = self(x, t, labels)
            x = x + size / 2 * (slope + self(x + size * slope, t + size, labels))
        return self.mean + self.deviation * x[:, 0]


def find_moments(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return E z and E z^2, (2, Z), of the mixture of normal posteriors with these means and log-variances (B, Z).

    The variance of the means would not do: of a unit that ignores the image it is nearly 0, while its draws have 1.
    """
    return torch.stack([mean.mean(dim=0), (mean.square() + log_variance.exp()).mean(dim=0)])
