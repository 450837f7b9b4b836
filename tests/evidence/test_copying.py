"""Data copying: the experiments of the papers, whose answers their code gave."""

from itertools import combinations

import pytest
import torch
from sklearn.datasets import make_moons
from torch import Tensor

from pipeline.artifacts import ArtifactError
from pipeline.evidence.copying import (
    Copies,
    authenticity,
    compare,
    copying_statistic,
    distance_ratio,
    distances_to,
    find_copies,
    nearness,
)


def find(generated: Tensor, test: Tensor, train: Tensor) -> Copies:
    return find_copies(nearness(generated, train), nearness(test, train), len(train))


def measure_share(values: Tensor, train: Tensor) -> float:
    return authenticity(nearness(values, train), train)


def measure_ratio(generated: Tensor, test: Tensor, train: Tensor) -> float | None:
    return distance_ratio(nearness(generated, train), nearness(test, train))


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
    whole, share = distances_to(known, values), measure_share(values, known)
    monkeypatch.setattr("pipeline.evidence.copying.ROWS", 13)
    torch.testing.assert_close(distances_to(known, values), whole)
    assert measure_share(values, known) == share


def test_authenticity_of_fresh_data_of_copies_and_of_both() -> None:
    generator = torch.Generator().manual_seed(0)
    train, fresh = torch.randn(2, 2000, 32, generator=generator)
    whole = measure_share(fresh, train)
    assert whole == pytest.approx(0.779, abs=0.03)  # measured with marcojira/fld's code
    assert measure_share(train, train) == 0
    assert measure_share(torch.cat([train[:1000], fresh[:1000]]), train) == pytest.approx(whole / 2, abs=0.02)


def test_the_distance_ratio_is_that_of_a_brute_force_search_and_tells_copies_from_fresh_data() -> None:
    train, fresh, test = torch.randn(3, 500, 8, generator=torch.Generator().manual_seed(0))
    far = torch.stack([(train - row).norm(dim=1).min() for row in 2 * fresh]).median()
    near = torch.stack([(train - row).norm(dim=1).min() for row in test]).median()
    assert measure_ratio(2 * fresh, test, train) == pytest.approx(float(far / near), rel=1e-5)
    assert measure_ratio(fresh, test, train) == pytest.approx(1, abs=0.1)
    assert measure_ratio(train + 0.01, test, train) == pytest.approx(0.01 * 8**0.5 / float(near), rel=0.01)
    assert measure_ratio(train, test, train) == 0
    assert measure_ratio(fresh, train, train) is None


def test_too_few_samples_for_the_cells_are_refused() -> None:
    train = draw_moons(100, 0)
    with pytest.raises(ArtifactError, match="10 generated and 100 test features: none of 5 cells has 20"):
        copying_statistic(train[:10], train, train, cells=5, seed=0)
    with pytest.raises(ArtifactError, match="100 generated and 10 test features: none of 5 cells has 20"):
        copying_statistic(train, train[:10], train, cells=5, seed=0)


def draw_faces(count: int, seed: int) -> Tensor:
    """Draw points of a mixture in 16 dimensions, whose features are as far apart as those of images."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(10, 16, generator=torch.Generator().manual_seed(99))
    return centres[torch.randint(10, (count,), generator=generator)] + torch.randn(count, 16, generator=generator)


TRAIN, TEST, FRESH = draw_faces(2000, 0), draw_faces(1000, 1), draw_faces(500, 2)


@pytest.mark.parametrize("share", [1.0, 0.2, 0.06])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_planted_copies_are_proved_though_most_samples_are_fresh(share: float, noise: float) -> None:
    copies = TRAIN[: round(500 * share)]
    blurred = copies + noise * torch.randn(copies.shape, generator=torch.Generator().manual_seed(3))
    found = find(torch.cat([blurred, FRESH[len(copies) :]]), TEST, TRAIN)
    assert found.are_proved(0.001)
    assert found.found >= len(copies)


@pytest.mark.parametrize(
    "samples",
    [
        FRESH,
        FRESH * 0.5,  # of too little variety
        FRESH + 30,  # far from everything, as those of an untrained model
        draw_faces(30, 5)[torch.arange(500) % 30] + 0.001 * FRESH,  # a collapse to thirty images that are no copies
    ],
)
def test_fresh_poor_untrained_and_collapsed_samples_are_no_copies(samples: Tensor) -> None:
    assert not find(samples, TEST, TRAIN).are_proved(0.01)


def test_a_collapse_deceives_the_statistics_that_only_measure_distance() -> None:
    real = measure_share(TEST, TRAIN)
    unlucky = next(image for image in FRESH if measure_share(image[None], TRAIN) == 0).expand(500, -1)  # never seen
    assert measure_share(unlucky, TRAIN) == 0 < real
    assert not find(unlucky, TEST, TRAIN).are_proved(0.01)
    beside = (0.9 * TRAIN[:1] + 0.1 * FRESH[:1]).expand(500, -1)
    with pytest.raises(ArtifactError, match="1 distinct samples, and some near to a training image: too few, 20 are"):
        find(beside, TEST, TRAIN)
    assert find(TRAIN[:1].expand(500, -1), TEST, TRAIN).are_proved(0.01)  # one that was is a copy


def test_without_copies_the_p_value_is_as_often_below_a_level_as_it_says() -> None:
    pairs = [draw_faces(400, seed).split(200) for seed in range(10, 110)]
    values = [find(samples, test, TRAIN[:500]).p for samples, test in pairs]
    assert sum(p < 0.05 for p in values) / len(values) < 0.1
    assert min(values) > 1e-3


def test_the_p_value_counts_the_orders_of_samples_and_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evidence.copying.LEAST", 2)
    train = torch.cat([torch.zeros(1, 1), torch.full((1, 1), 100.0)])
    train = torch.cat([train * (index + 1) + 1000 * index for index in range(9)])
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])[:, None]
    # Seven values near seven training points, each with its own distance: three are samples, the first two come first.
    values = values + torch.tensor([1000.0 * index for index in range(7)])[:, None]
    order = nearness(values, train).values.argsort()
    samples = values[order[[0, 1, 4]]]
    found = find(samples, values[order[[2, 3, 5, 6]]], train)
    orders = list(combinations(range(7), 3))  # places of the samples
    expected = sum({0, 1} <= {*places} for places in orders) / len(orders)
    assert (found.found, found.count) == (2, 3)
    assert found.p == pytest.approx(expected)


def test_too_few_of_any_kind_are_named() -> None:
    with pytest.raises(ArtifactError, match="distinct test images: too few, 20 are needed"):
        find(FRESH, TEST[:10], TRAIN)
    with pytest.raises(ArtifactError, match="15 training images"):
        find(FRESH, TEST, TRAIN[:15])
    with pytest.raises(ArtifactError, match="19 samples: too few"):
        find(FRESH[:19], TEST, TRAIN)


def test_test_images_that_are_training_images_hide_no_copies() -> None:
    leaked = torch.cat([TRAIN[:50], TEST[50:]])
    assert find(TRAIN[1000:1500], leaked, TRAIN).are_proved(0.001)
    assert find(leaked[:500], leaked, TRAIN).equal == pytest.approx(0.1)
    assert not Copies(0, 500, 5.0, 1.0, equal=0.02, equal_real=0.01).are_proved(0.01)  # as many as among test images
