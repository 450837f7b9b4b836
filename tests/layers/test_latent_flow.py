"""The flow of latents against distributions that are known."""

import pytest
import torch

from pipeline.layers.latent_flow import LatentFlow, find_moments


def make_flow(classes: int = 0) -> LatentFlow:
    torch.manual_seed(0)
    return LatentFlow(2, width=32, blocks=2, classes=classes)


def draw_mixture(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two normals at (-2, 0) and (2, 1), of deviations 0.5 and 0.25, a quarter and three quarters of the draws."""
    labels = (torch.rand(count, generator=generator) < 0.75).long()
    noise = torch.randn(count, 2, generator=generator)
    centres, deviations = torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), torch.tensor([0.5, 0.25])
    return centres[labels] + noise * deviations[labels, None], labels


def fit(flow: LatentFlow, *, steps: int, is_given: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(flow.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 8e-3 * (1 - step / steps)
        z, labels = draw_mixture(256, generator)
        flow.observe(find_moments(z, torch.full_like(z, -30.0)))
        noise, t = torch.randn(256, 1, 2, generator=generator), torch.randn(256, generator=generator).sigmoid()
        loss = flow.loss(z[:, None], noise, t, labels if is_given else None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_fitted_flow_has_the_shares_means_and_deviations_of_a_mixture() -> None:
    flow = make_flow()
    fit(flow, steps=300, is_given=False)
    with torch.no_grad():
        drawn = flow.draw(torch.randn(4000, 2, generator=torch.Generator().manual_seed(1)), 16)
    right = drawn[:, 0] > 0
    assert right.float().mean().item() == pytest.approx(0.75, abs=0.04)
    assert drawn[right].mean(dim=0).tolist() == pytest.approx([2, 1], abs=0.12)
    assert drawn[~right].mean(dim=0).tolist() == pytest.approx([-2, 0], abs=0.25)
    assert drawn[right].std(dim=0).tolist() == pytest.approx([0.25, 0.25], abs=0.15)
    assert drawn[~right].std(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.25)


def test_a_flow_of_classes_draws_the_class_that_it_is_given() -> None:
    flow = make_flow(classes=2)
    fit(flow, steps=100, is_given=True)
    labels = torch.arange(1000) % 2
    with torch.no_grad():
        drawn = flow.draw(torch.randn(1000, 2, generator=torch.Generator().manual_seed(1)), 4, labels)
    assert ((drawn[:, 0] > 0) == (labels == 1)).float().mean() > 0.98


def test_a_new_flow_draws_a_normal_with_the_running_moments_and_its_error_falls_with_the_steps() -> None:
    flow = make_flow()
    flow.mean.copy_(torch.tensor([3.0, -1.0]))
    flow.square.copy_(torch.tensor([9 + 4.0, 1 + 0.25]))
    noise = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    exact = torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 0.5]) * noise  # the path of a normal to a normal
    with torch.no_grad():
        errors = [(flow.draw(noise, steps) - exact).abs().max().item() for steps in (8, 16, 32)]
    assert errors[0] < 0.05
    assert errors[0] / errors[1] > 3.5  # second order at least
    assert errors[1] / errors[2] > 3.5


def test_the_deviation_is_that_of_the_posteriors_draws_and_1_for_a_unit_that_ignores_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(4000, 2, generator=generator) * torch.tensor([0.9, 0.0]) + torch.tensor([0.5, 0.0])
    log_variance = torch.tensor([0.19, 1.0]).log().expand(4000, 2)
    flow = make_flow()
    for part in torch.arange(4000).split(20):
        flow.observe(find_moments(mean[part], log_variance[part]))
    draws = mean + torch.randn(4000, 2, generator=generator) * (0.5 * log_variance).exp()
    torch.testing.assert_close(flow.deviation, draws.std(dim=0), rtol=0.05, atol=0)
    torch.testing.assert_close(flow.mean, draws.mean(dim=0), rtol=0, atol=0.07)
    assert flow.deviation[1].item() == pytest.approx(1, abs=1e-3)  # of the means it would be 0


def test_the_running_moments_forget_where_they_started() -> None:
    flow = make_flow()
    for _ in range(12):
        flow.observe(torch.tensor([[5.0, 0.0], [26.0, 4.0]]))
    torch.testing.assert_close(flow.mean, torch.tensor([5.0, 0.0]), rtol=0, atol=1e-3)
    torch.testing.assert_close(flow.deviation, torch.tensor([1.0, 2.0]), rtol=0, atol=1e-2)


def test_one_time_of_several_draws_gives_the_mean_of_their_losses() -> None:
    flow = make_flow()
    torch.nn.init.normal_(flow.last.weight)
    z, noise, t = torch.randn(6, 3, 2), torch.randn(6, 3, 2), torch.rand(6)
    apart = [flow.loss(z[:, k : k + 1], noise[:, k : k + 1], t) for k in range(3)]
    torch.testing.assert_close(flow.loss(z, noise, t), torch.stack(apart).mean())
