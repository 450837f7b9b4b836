"""Mode coverage against mixtures whose answers are known."""

import math

import pytest
import torch

from pipeline.artifacts import ArtifactError
from pipeline.data import gaussians
from pipeline.metrics.points import Config, Evidence, Sampling, compute, log_density, measure_points

CONFIG = Config(sampling=Sampling(count=2500, sets=1), deviations=3.0)


def make(layout: str = "ring", modes: int = 8, deviation: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    values = {"source": "gaussians", "path": "data/own", "count": 10_000, "data_seed": 0}
    config = gaussians.Config.model_validate({**values, "layout": layout, "modes": modes, "deviation": deviation})
    points = gaussians.prepare(None, config)  # type: ignore[arg-type]
    return points.splits["train"][0], points.modes


@pytest.mark.parametrize(("layout", "modes"), [("ring", 8), ("grid", 25)])
def test_real_points_cover_every_mode_with_the_quality_of_a_gaussian(layout: str, modes: int) -> None:
    points, means = make(layout, modes)
    found = measure_points(points, means, 0.05, 3.0)
    assert found["modes_covered"] == modes
    within = 1 - math.exp(-(3.0**2) / 2)  # of a two-dimensional Gaussian: Rayleigh's distribution
    assert found["high_quality"] == pytest.approx(within, abs=0.004)
    assert found["mode_kl_nats"] < 1e-4
    # Modes far apart: the entropy is log K + log(2 pi e s^2).
    assert found["log_density_nats"] == pytest.approx(
        -math.log(modes) - math.log(2 * math.pi * math.e * 0.05**2), abs=0.03
    )


def test_log_density_is_that_of_torch_distributions() -> None:
    modes, points = torch.randn(4, 3).double(), torch.randn(20, 3).double()
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(4).double()),
        torch.distributions.Independent(torch.distributions.Normal(modes, 0.3), 1),
    )
    torch.testing.assert_close(log_density(points, modes, 0.3), mixture.log_prob(points))


def test_a_dropped_mode_is_counted_and_its_kl_is_known() -> None:
    points, means = make()
    nearest = torch.cdist(points, means).argmin(dim=1)
    found = measure_points(points[nearest != 3], means, 0.05, 3.0)
    assert found["modes_covered"] == 7
    assert found["mode_kl_nats"] == pytest.approx(math.log(8 / 7), abs=1e-4)


def test_points_between_the_modes_are_of_no_quality_and_cover_none() -> None:
    means = make()[1]
    found = measure_points((means + means.roll(1, 0)) / 2, means, 0.05, 3.0)
    assert (found["high_quality"], found["modes_covered"]) == (0, 0)


def test_one_point_a_mode_at_its_mean_is_denser_than_real_points() -> None:
    points, means = make()
    values = compute(Evidence([means.repeat(20, 1)], points[:2000], means, 0.05), CONFIG)
    assert values["log_density_nats"][0] > values["log_density_nats_real"][0] + 0.9
    assert values["samples"] == [160]


def test_points_of_another_dimension_or_not_finite_are_refused() -> None:
    points, means = make()
    for broken in (torch.zeros(200, 3), torch.full((200, 2), math.nan)):
        with pytest.raises(ArtifactError, match=r"got \(200, [23]\) for modes \(8, 2\)"):
            compute(Evidence([broken], points, means, 0.05), CONFIG)


def test_splits_are_disjoint_draws_with_equal_modes_and_equal_seeds_give_equal_points() -> None:
    values = {"source": "gaussians", "path": "data/own", "count": 1000, "data_seed": 0, "deviation": 0.05}
    config = gaussians.Config.model_validate({**values, "layout": "grid", "modes": 25})
    first, again = (gaussians.prepare(None, config) for _ in range(2))  # type: ignore[arg-type]
    assert [len(points) for points, _ in first.splits.values()] == [1000, 200, 200]
    for name, (points, labels) in first.splits.items():
        assert torch.equal(points, again.splits[name][0])
        assert labels.bincount().tolist() == [len(points) // 25] * 25
    with pytest.raises(ValueError, match="square number for layout grid, got 8"):
        gaussians.Config.model_validate({**values, "layout": "grid", "modes": 8})
