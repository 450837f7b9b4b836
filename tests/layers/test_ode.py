"""Solvers and densities of flows against closed forms."""

import itertools
import math

import pytest
import torch
from torch.distributions import Independent, Normal

from pipeline.layers.ode import (
    SOLVERS,
    draw_probes,
    find_divergence,
    find_log_density,
    integrate,
    to_place,
    to_time,
)

MEAN, DEVIATION = torch.tensor([0.3, -0.2, 0.5]), torch.tensor([0.1, 0.7, 2.0])


def flow_to_normal(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """E[x1 - x0 | x] of x = (1 - t) x0 + t x1 for a standard normal x0 and a normal x1."""
    t = times[:, None]
    variance = (1 - t) ** 2 + t**2 * DEVIATION**2
    return MEAN + (t * DEVIATION**2 - (1 - t)) / variance * (x - t * MEAN)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_halving_the_steps_divides_the_error_by_two_to_the_order(solver: str, order: int) -> None:
    # dx/dt = 3 cos(3 t) x from x(0) = 1 has x(t) = exp(sin(3 t)).
    errors = []
    for steps in (64, 128):
        times = [index / steps for index in range(steps + 1)]
        found = integrate(lambda x, t: 3 * math.cos(3 * t) * x, torch.ones(1, dtype=torch.float64), times, solver)
        errors.append(abs(found.item() - math.exp(math.sin(3))))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_rates_of_a_step_have_weights_that_add_up(solver: str) -> None:
    stages, weights = SOLVERS[solver]
    assert sum(weights) == pytest.approx(1)
    assert [sum(shares) for _, shares in stages] == pytest.approx([place for place, _ in stages])


def test_places_and_times_are_inverse_and_the_ends_are_data_and_noise() -> None:
    times = torch.linspace(0, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(to_time(to_place(times)), times)
    assert to_place(torch.tensor([1.0, 0.0])).tolist() == pytest.approx([0, 1])


def test_the_density_of_a_linear_flow_is_that_of_its_normal() -> None:
    x = MEAN + DEVIATION * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    exact = Independent(Normal(MEAN.double(), DEVIATION.double()), 1).log_prob(x.double())
    torch.testing.assert_close(find_log_density(flow_to_normal, x, 64, None), exact, rtol=0, atol=1e-4)
    coarse = find_log_density(flow_to_normal, x, 2, None)
    assert (coarse - exact).abs().mean() > 0.01  # too few steps are seen
    # The divergence of a diagonal field is exact with one probe of signs, whichever it is.
    probes = draw_probes(x.shape, torch.Generator().manual_seed(1))
    assert set(probes.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(find_log_density(flow_to_normal, x, 64, probes), exact, rtol=0, atol=1e-4)


def test_a_flow_that_does_not_move_has_the_density_of_the_noise() -> None:
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))  # of any shape
    found = find_log_density(lambda values, times: 0 * values * times.view(-1, 1, 1, 1), x, 1, torch.ones_like(x))
    torch.testing.assert_close(found, Normal(0.0, 1.0).log_prob(x.double()).sum(dim=(1, 2, 3)))


def test_the_mean_over_all_signs_is_the_divergence() -> None:
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))

    def velocity(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ matrix)

    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    exact = [torch.autograd.functional.jacobian(velocity, row).trace() for row in x]  # type: ignore[no-untyped-call]
    found, divergence = find_divergence(velocity, x, None)
    torch.testing.assert_close(found, velocity(x))
    torch.testing.assert_close(divergence, torch.stack(exact))
    signs = [torch.tensor(each).expand(2, 4) for each in itertools.product((-1.0, 1.0), repeat=4)]
    probed = torch.stack([find_divergence(velocity, x, probe)[1] for probe in signs])
    torch.testing.assert_close(probed.mean(dim=0), divergence)
    assert probed.std(dim=0).min() > 0.01
