"""Ordinary differential equations of flows: explicit Runge-Kutta steps, and the density that a flow gives a point.

A flow carries noise at time 0 to data at time 1 by dx/dt = v(x, t). Along a path log p changes by -div v dt (Chen et
al. 2018, "Neural ordinary differential equations", eq. 8).

Dimensions: B batch, D dimensions of a value.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Rate = Callable[[Tensor, float], Tensor]  # the state's rate of change at a state and a time
Velocity = Callable[[Tensor, Tensor], Tensor]  # of values (B, ...) at times (B,)

# By solver: for each evaluation in a step its place in the step and the weights of the rates before it, and at last the
# weights of the rates in the step (Hairer, Norsett and Wanner 1993, II.1).
SOLVERS: dict[str, tuple[tuple[tuple[float, tuple[float, ...]], ...], tuple[float, ...]]] = {
    "euler": (((0, ()),), (1,)),
    "heun": (((0, ()), (1, (1,))), (1 / 2, 1 / 2)),
    "rk4": (
        ((0, ()), (1 / 2, (1 / 2,)), (1 / 2, (0, 1 / 2)), (1, (0, 0, 1))),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}
NEAREST = 0.002  # distance from the data below which nothing changes much: a grey level's deviation, for [-1, 1]
LONGEST = math.log1p(1 / NEAREST)
EXACT = 64  # dimensions up to which the divergence is the sum of all its terms


def integrate(rate: Rate, state: Tensor, times: list[float], solver: str) -> Tensor:
    """Return the state at the last of the times; `state` is that at the first one, and there is a step between each."""
    stages, weights = SOLVERS[solver]
    for start, end in pairwise(times):
        size = end - start
        rates: list[Tensor] = []
        for place, shares in stages:
            rates.append(rate(_move(state, size, shares, rates), start + place * size))
        state = _move(state, size, weights, rates)
    return state


def _move(state: Tensor, size: float, weights: tuple[float, ...], rates: list[Tensor]) -> Tensor:
    for weight, rate in zip(weights, rates, strict=True):
        if weight:
            state = state + size * weight * rate
    return state


def to_place(times: Tensor) -> Tensor:
    """Return how far times in [0, 1] are from the data on a logarithmic scale: 0 at time 1, and 1 at time 0."""
    return torch.log1p((1 - times) / NEAREST) / LONGEST


def to_time(places: Tensor) -> Tensor:
    """Return the times of places; the inverse of `to_place`."""
    return 1 - NEAREST * torch.expm1(places * LONGEST)


def draw_probes(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return random signs, float32 of `shape`: probes of a divergence with the least variance (Hutchinson 1990)."""
    return 2 * torch.randint(2, shape, generator=generator, device=generator.device).float() - 1


def find_divergence(velocity: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return v(x) (B, D) and its divergence (B,) at x (B, D).

    probes: signs (B, D), whose product e (dv/dx) e has the divergence as its mean; None adds up all D terms.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        found = velocity(x)
        if probes is None:
            rows = torch.eye(x.size(1), dtype=x.dtype, device=x.device)
            terms = [torch.autograd.grad(found, x, row.expand_as(x), retain_graph=True)[0] * row for row in rows]
        else:
            terms = [torch.autograd.grad(found, x, probes)[0] * probes]
    return found.detach(), torch.stack(terms).sum(dim=(0, 2))


def find_log_density(velocity: Velocity, x: Tensor, steps: int, probes: Tensor | None) -> Tensor:
    """Return log p(x) in nats of values (B, ...) under a flow from a standard normal, float64 (B,).

    The path leads back from the data in `steps` Runge-Kutta steps of four evaluations, even on the scale of `to_place`:
    near the data a velocity changes over times as short as the distance from them.

    Args:
        velocity: of values at times; its gradient is taken.
        x: values.
        steps: of the solver.
        probes: random signs of the shape of x; None for an exact divergence.
    """
    flat = None if probes is None else probes.flatten(1)

    def rate(state: Tensor, place: float) -> Tensor:
        times = to_time(torch.full((len(x),), place, dtype=torch.float64, device=x.device)).clamp(0, 1)
        slope = -NEAREST * LONGEST * math.exp(place * LONGEST)  # of the time at the place
        found, divergence = find_divergence(
            lambda values: velocity(values.view_as(x), times.to(x.dtype)).flatten(1), state[:, :-1].to(x.dtype), flat
        )
        return torch.cat([found, divergence[:, None]], dim=1).double() * slope

    places = torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()
    state = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1).double()
    state = integrate(rate, state, places, "rk4")
    noise, change = state[:, :-1], state[:, -1]  # change: of log p towards the noise, minus the divergence's integral
    return change - 0.5 * (noise.square() + math.log(2 * math.pi)).sum(dim=1)
