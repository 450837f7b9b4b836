"""Data copying: the experiments of the papers, whose answers their code gave."""

import pytest
import torch
from sklearn.datasets import make_moons
from torch import Tensor

from pipeline.artifacts import ArtifactError
from pipeline.evidence.copying import authenticity, compare, copying_statistic, distances_to


def draw_moons(count: int, seed: int) -> Tensor:
    return torch.from_numpy(make_moons(n_samples=count, noise=0.2, random_state=seed)[0])


def draw_kernels(train: Tensor, width: float, seed: int, count: int = 1000) -> Tensor:
    """Draw from the kernel density estimate of the training points: copies, blurred by `width`."""
    generator = torch.Generator().manual_seed(seed)
    chosen = train[torch.randint(len(train), (count,), generator=generator)]
    return chosen + width * torch.randn(chosen.shape, generator=generator, dtype=chosen.dtype)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("width", "low", "high"),
    [
        # Meehan et al. 2020, figure 3, 2000 training, 1000 test, 1000 generated points, 5 cells; the authors' code,
        # run on three seeds: -17.4 to -17.3, 0 to 0.7 at the width of the largest likelihood, 16.1 to 16.2
        (1e-3, -17.6, -17.1),
        (0.1, -2.0, 2.0),
        (10.0, 15.9, 16.5),
    ],
)
def test_kernels_of_three_widths_copy_fit_and_underfit_as_published(
    width: float, low: float, high: float, seed: int
) -> None:
    train, test = draw_moons(2000, seed), draw_moons(1000, seed + 100)
    assert low < copying_statistic(draw_kernels(train, width, seed), test, train, cells=5, seed=seed) < high


def test_copies_are_found_and_fresh_data_are_not() -> None:
    train, test = draw_moons(2000, 0), draw_moons(1000, 1)
    assert copying_statistic(train[:1000], test, train, cells=5, seed=0) < -17.1
    fresh = [copying_statistic(draw_moons(1000, seed), test, train, cells=5, seed=0) for seed in range(2, 12)]
    assert max(map(abs, fresh)) < 3
    half = torch.cat([train[:500], draw_moons(500, 20)])
    assert -17 < copying_statistic(half, test, train, cells=5, seed=0) < -3


def test_the_z_score_is_that_of_a_count_of_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(20, (count,), generator=generator).double() for count in (40, 70))
    pairs = (first[:, None] > second).double() + 0.5 * (first[:, None] == second).double()
    expected = (float(pairs.sum()) - 40 * 70 / 2) / (40 * 70 * 111 / 12) ** 0.5
    assert compare(first, second) == pytest.approx(expected)
    assert compare(second, first) == pytest.approx(-expected)


def test_distances_over_several_parts_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    known, values = draw_moons(50, 0), draw_moons(70, 1)
    whole, share = distances_to(known, values), authenticity(values, known)
    monkeypatch.setattr("pipeline.evidence.copying.ROWS", 13)
    torch.testing.assert_close(distances_to(known, values), whole)
    assert authenticity(values, known) == share


def test_authenticity_of_fresh_data_of_copies_and_of_both() -> None:
    generator = torch.Generator().manual_seed(0)
    train, fresh = torch.randn(2, 2000, 32, generator=generator)
    whole = authenticity(fresh, train)
    assert whole == pytest.approx(0.779, abs=0.03)  # measured with marcojira/fld's code
    assert authenticity(train, train) == 0
    assert authenticity(torch.cat([train[:1000], fresh[:1000]]), train) == pytest.approx(whole / 2, abs=0.02)


def test_too_few_samples_for_the_cells_are_refused() -> None:
    train = draw_moons(100, 0)
    with pytest.raises(ArtifactError, match="none of 5 cells has 20"):
        copying_statistic(train[:10], train, train, cells=5, seed=0)
