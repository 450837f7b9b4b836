"""The learned prior against the change-of-variables formula, worked out another way."""

import math

import torch
from torch.distributions import Independent, Normal

from pipeline.layers.flow import Flow


def make_flow(size: int, couplings: int = 5) -> Flow:
    torch.manual_seed(0)
    flow = Flow(size, couplings, hidden=8).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # it starts as the identity
    return flow


def test_without_couplings_the_density_is_the_standard_normal() -> None:
    z = torch.randn(7, 3, 4)
    torch.testing.assert_close(Flow(4, 0, 1).log_density(z), Independent(Normal(torch.zeros(4), 1.0), 1).log_prob(z))


def test_a_new_flow_is_the_standard_normal() -> None:
    z = torch.randn(7, 4)
    torch.testing.assert_close(Flow(4, 6, 8).log_density(z), Flow(4, 0, 1).log_density(z))


def test_samples_map_back_to_their_noise_by_the_density_of_autograds_jacobian() -> None:
    flow = make_flow(5)
    noise = torch.randn(6, 5, dtype=torch.float64)
    z = flow.draw(noise)
    assert (z - noise).abs().max() > 0.5
    base = Independent(Normal(torch.zeros(5), 1.0), 1).log_prob(noise)
    for one, start, density in zip(flow.log_density(z), noise, base, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda u: flow.draw(u[None])[0], start)
        torch.testing.assert_close(one, density - jacobian.det().abs().log())


def test_the_density_of_a_line_and_a_plane_integrates_to_one() -> None:
    grid = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    line = make_flow(1).log_density(grid[:, None]).exp().sum() * 0.02
    plane = torch.cartesian_prod(grid[::2], grid[::2])
    area = make_flow(2).log_density(plane).exp().sum() * 0.04**2
    torch.testing.assert_close(line, torch.ones((), dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(area, torch.ones((), dtype=torch.float64), atol=1e-2, rtol=0)


def test_every_unit_is_changed_by_some_coupling_and_helps_to_change_others() -> None:
    flow = make_flow(5, couplings=4)
    jacobian = torch.autograd.functional.jacobian(lambda u: flow.draw(u[None])[0], torch.zeros(5, dtype=torch.float64))
    assert (jacobian.abs() > 1e-9).all()


def test_fitting_moves_the_density_to_the_data() -> None:
    data = torch.tensor([2.0, -1.0]) + torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[0.6, 0.3], [0.0, 0.4]]
    )
    flow = Flow(2, 4, hidden=32)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(200):
        loss = -flow.log_density(data).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    entropy = math.log(2 * math.pi * math.e) + math.log(0.6 * 0.4)  # of the normal that the data come from
    assert entropy - 0.1 < loss.item() < entropy + 0.1
