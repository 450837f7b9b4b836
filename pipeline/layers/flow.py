"""A density of vectors that is learned: RealNVP (Dinh et al. 2017), affine couplings over a standard normal.

A VAE with this prior for its single latent vector reaches bounds that otherwise take a hierarchy of latents (Xu et al.
2019, "On the Necessity and Effectiveness of Learning the Prior of Variational Auto-Encoder").

Dimensions: Z latent.
"""

import math

import torch
from torch import Tensor, nn


class Coupling(nn.Module):
    """y = b x + (1 - b) (x exp(s(b x)) + t(b x)) for a mask b of zeros and ones (Dinh et al. 2017, eq. 9).

    Starts as the identity; |s| stays below 2, so that no coupling explodes.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        size = len(mask)
        last = nn.Linear(hidden, 2 * size)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)

    def _parts(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.layers(kept).chunk(2, dim=-1)
        return 2 * torch.tanh(scale / 2) * (1 - self.mask), shift * (1 - self.mask)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x (..., Z) towards the normal; return y (..., Z) and log |dy / dx| (...)."""
        scale, shift = self._parts(x * self.mask)
        return x * scale.exp() + shift, scale.sum(dim=-1)

    def invert(self, y: Tensor) -> Tensor:
        """Return the x (..., Z) that forward maps to y."""
        scale, shift = self._parts(y * self.mask)
        return (y - shift) * (-scale).exp()


class Flow(nn.Module):
    """A density of vectors (..., Z): `couplings` couplings in turn over halves and over every second unit."""

    def __init__(self, size: int, couplings: int, hidden: int) -> None:
        super().__init__()
        self.size = size
        units = torch.arange(size)
        patterns = [units < size // 2, units % 2 == 0]
        masks = [mask.float() for pattern in patterns for mask in (pattern, ~pattern)]
        self.couplings = nn.ModuleList(Coupling(masks[index % len(masks)], hidden) for index in range(couplings))

    def log_density(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats of z (..., Z), shape (...)."""
        total = torch.zeros(z.shape[:-1], dtype=z.dtype, device=z.device)
        for coupling in self.couplings:
            z, change = coupling(z)
            total = total + change
        return total - 0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=-1)

    def draw(self, noise: Tensor) -> Tensor:
        """Map standard normal noise (N, Z) to samples (N, Z)."""
        for coupling in reversed(self.couplings):
            noise = coupling.invert(noise)  # type: ignore[operator]
        return noise
