"""Log-probabilities of images and latents, in nats.

Dimensions: B batch, C H W image, Z latent.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def log_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """Log-probability in nats of binary images x (B, C, H, W) for logits (B, C, H, W), summed to (B,)."""
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=(1, 2, 3))


def log_discretized_logistic(logits: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """Log-probability in nats of grey levels x = i / 255 (B, C, H, W) with means sigmoid(logits), summed to (B,)."""
    return log_logistic_levels(logits.sigmoid(), log_scale, x)


def log_logistic_levels(means: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """Log-probability in nats of grey levels x = i / 255 (B, C, H, W), summed to (B,).

    The probability of a level is the mass that a logistic distribution with these means and the scale exp(log_scale),
    both for the range [0, 1], has in its bin of width 1 / 255; the end bins take the tails.
    """
    centred = x - means
    inverse = (-log_scale).exp()
    upper = torch.where(x > 254.5 / 255, torch.inf, (centred + 0.5 / 255) * inverse)
    lower = torch.where(x < 0.5 / 255, -torch.inf, (centred - 0.5 / 255) * inverse)
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)), which keeps its digits in both tails
    log_mass = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log1p(-torch.exp((lower - upper).clamp(max=-1e-6)))
    return log_mass.sum(dim=(1, 2, 3))


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats for each unit, (B, Z)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def log_normal(z: Tensor, mean: Tensor | float, log_variance: Tensor | float) -> Tensor:
    """Log-density of z (..., Z) under a diagonal normal, summed over Z."""
    log_variance = torch.as_tensor(log_variance, dtype=z.dtype, device=z.device)
    terms = log_variance + (z - mean).square() * (-log_variance).exp() + math.log(2 * math.pi)
    return -0.5 * terms.sum(dim=-1)


def binarize(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each pixel of uint8 images (B, C, H, W) white with its grey level as the chance: float32, 0 or 1."""
    return (torch.rand(images.shape, generator=generator, device=images.device) < images / 255).float()
