"""Blocks that several models use: residual convolutions, averaged weights, learning-rate schedules, the Muon optimizer.

Dimensions: B batch, C H W image, T tokens, D width, V vocabulary, Z latent.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim.adamw import adamw
from torch.optim.swa_utils import AveragedModel

from pipeline.randomness import WHOLE, Part, share


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), same shape (B, D, H, W); starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return x + self.second(F.silu(self.first(F.silu(x))))


def make_average(module: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of `module`, updated by `.update_parameters(module)`.

    The decay warms up as min(decay, (1 + n) / (10 + n)) (Karras et al. 2022, TensorFlow's ExponentialMovingAverage),
    so that short runs do not keep their random start. Buffers are copied, not averaged. Lightning's own callback is
    not used because it never updates with two optimizers and an even interval.
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], currents: Sequence[Tensor], updates: Tensor | int) -> None:
        warm = (1 + int(updates)) / (10 + int(updates))
        torch._foreach_lerp_(list(averages), list(currents), 1 - min(decay, warm))

    average = AveragedModel(module, multi_avg_fn=update)
    average.requires_grad_(False)
    return average.eval()


def warmup_cosine(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Return the learning-rate factor at `step` of `steps`: linear warm-up to 1, then half a cosine down to `final`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Approximate U V^T of each (..., M, N) float matrix = U S V^T by Newton-Schulz iteration, in its own dtype.

    Coefficients of K. Jordan et al., "Muon: An optimizer for hidden layers" (2024): singular values end in about
    [0.7, 1.2], which suffices for an update direction. torch.optim.Muon runs this in bfloat16, which costs ten
    times as much as float32 on a CPU without native bfloat16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    transposed = matrix.size(-2) > matrix.size(-1)
    x = matrix.mT if transposed else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices and AdamW for everything else, in one optimizer.

    One optimizer keeps Lightning's automatic optimization, schedules, clipping and step counts. Matrices of equal
    shape are orthogonalised together in one batched product.

    Args:
        matrices: 2-D parameters (M, N) of hidden layers, updated by Muon.
        others: every other parameter (embeddings, heads, gains), updated by AdamW.
        lr: learning rate of the matrices; their update has an RMS of about 0.2 per element times `lr`
            (Liu et al. 2025, "Muon is scalable for LLM training"), which makes it comparable with AdamW's.
        adam_lr: learning rate of the other parameters.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        adam_lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "kind": "muon", "lr": lr},
            # "fused": a resumed training gets its counts of steps on the device of the weights
            {"params": list(others), "kind": "adamw", "lr": adam_lr, "fused": True},
        ]
        super().__init__(groups, {"momentum": momentum, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one update; returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (self._step_matrices if group["kind"] == "muon" else self._step_others)(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for (rows, columns), parameters in by_shape.items():
            gradients = torch.stack([parameter.grad for parameter in parameters])  # type: ignore[misc]
            # One stacked momentum buffer would tie the state to the grouping: each parameter keeps its own.
            for index, parameter in enumerate(parameters):
                buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                buffer.lerp_(gradients[index], 1 - group["momentum"])
                gradients[index].lerp_(buffer, group["momentum"])  # Nesterov
            if isinstance(gradients, DTensor):  # of a sharded model: each process orthogonalises whole matrices
                gradients = gradients.redistribute(placements=[Replicate()] * gradients.device_mesh.ndim)
            updates = orthogonalize(gradients) * (0.2 * math.sqrt(max(rows, columns)))
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _step_others(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each target int64 (B, T) under logits (B, T, V), float64 (B, T); never softmax, then log."""
    nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return nats.double().view(targets.shape)


def pick(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return which symbol each of the numbers in [0, 1), (N,), picks of its row of probabilities (N, V): int64 (N,)."""
    ends = probabilities.double().cumsum(dim=-1)
    # `right` never picks a symbol of no probability, and a number below 1 is below the last end.
    picked = torch.searchsorted(ends, uniform.double()[:, None] * ends[:, -1:], right=True)
    return picked.squeeze(1).clamp(max=ends.size(1) - 1)


def from_bytes(images: Tensor) -> Tensor:
    """Map uint8 images in [0, 255] to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Map float images in [-1, 1] to the nearest uint8 in [0, 255]; the inverse of from_bytes."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte()


def shift_images(images: Tensor, most: int, generator: torch.Generator, part: Part = WHOLE) -> Tensor:
    """Shift each image (B, C, H, W) of a part of a batch by up to `most` pixels each way, filling with 0."""
    if not most:
        return images
    batch, channels, height, width = images.shape
    padded = F.pad(images, (most, most, most, most))

    def draw(count: int) -> Tensor:
        return torch.randint(2 * most + 1, (2, count, 1, 1, 1), generator=generator, device=images.device)

    offset = share(draw, batch, part, dim=1)
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1) + offset[0]
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1) + offset[1]
    where = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[where, channel, rows, columns]
