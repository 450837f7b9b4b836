"""Intervals and verdicts against scipy, simulations and the definitions."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from pipeline.evidence.uncertainty import MOST_SEEDS, compare, count_seeds, format_interval, format_number, summarize


def simulate(
    rng: np.random.Generator, *, seeds: int, sets: int, mean: float, training: float, sampling: float
) -> list[list[float]]:
    means = mean + training * rng.standard_normal((seeds, 1))
    table: list[list[float]] = (means + sampling * rng.standard_normal((seeds, sets))).tolist()
    return table


def test_the_interval_over_seeds_is_student_s_of_their_means() -> None:
    table = [[1.0, 3.0], [4.0, 6.0], [2.0, 2.0]]
    found = summarize(table)
    low, high = stats.t.interval(0.95, 2, loc=3, scale=stats.sem([2, 5, 2]))
    assert (found.mean, found.low, found.high) == pytest.approx((3, low, high))
    assert (found.seeds, found.sets) == (3, 2)


def test_one_seed_gives_the_interval_over_its_sets_and_no_training_variance() -> None:
    found = summarize([[1.0, 2.0, 4.0]])
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1, 2, 4]))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert math.isnan(found.training_sd)
    assert math.isnan(summarize([[1.0]]).low)


def test_training_and_sampling_variance_are_told_apart() -> None:
    table = simulate(np.random.default_rng(0), seeds=2000, sets=4, mean=5, training=0.3, sampling=0.7)
    found = summarize(table)
    assert found.training_sd == pytest.approx(0.3, rel=0.1)
    assert found.sampling_sd == pytest.approx(0.7, rel=0.05)


def test_without_training_variance_it_is_found_near_zero_and_never_negative() -> None:
    rng = np.random.default_rng(1)
    found = [summarize(simulate(rng, seeds=5, sets=3, mean=0, training=0, sampling=1)).training_sd for _ in range(200)]
    assert min(found) == 0
    assert np.median(found) < 0.4


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    intervals = [summarize(simulate(rng, seeds=4, sets=3, mean=1, training=1, sampling=1)) for _ in range(2000)]
    covered = np.mean([found.low <= 1 <= found.high for found in intervals])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_equal_distributions_are_seldom_called_different() -> None:
    rng = np.random.default_rng(3)
    same = {"seeds": 3, "sets": 2, "mean": 0.0, "training": 1.0, "sampling": 0.5}
    decided = [compare(simulate(rng, **same), simulate(rng, **same)).decided for _ in range(1000)]  # type: ignore[arg-type]
    assert np.mean(decided) < 0.05


def test_p_is_welch_s_and_distant_means_are_decided() -> None:
    first, second = [[1.0], [1.1], [0.9]], [[2.0], [2.3], [2.2]]
    found = compare(first, second)
    assert found.difference == pytest.approx(7 / 6)
    assert found.p == pytest.approx(stats.ttest_ind([1, 1.1, 0.9], [2, 2.3, 2.2], equal_var=False).pvalue)
    assert found.decided


def test_one_training_seed_decides_nothing() -> None:
    found = compare([[1.0, 1.0, 1.0]], [[9.0, 9.0, 9.0], [9.1, 9.1, 9.1]])
    assert not found.decided
    assert math.isnan(found.p)


def test_the_seeds_needed_are_the_first_number_whose_intervals_part() -> None:
    needed = count_seeds(1.0, 2.0)  # two standard deviations of 1
    width = [2 * stats.t.ppf(0.975, n - 1) / math.sqrt(n) for n in (needed - 1, needed)]
    assert width[1] < 1 <= width[0]


def test_a_difference_that_most_seeds_cannot_decide_needs_no_number_of_seeds() -> None:
    width = float(stats.t.ppf(0.975, MOST_SEEDS - 1)) / math.sqrt(MOST_SEEDS)
    assert count_seeds(1.0001 * width, 1.0) == MOST_SEEDS
    assert count_seeds(0.9999 * width, 1.0) == 0
    assert count_seeds(0.0, 1.0) == 0


@pytest.mark.parametrize("constant", [1000.0, 0.1])
def test_equal_constants_are_the_same_however_their_means_are_rounded(constant: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy's, of lost precision
        found = compare([[constant]] * 3, [[constant]] * 2)
    assert (found.difference, found.p, found.decided) == (0, 1, True)
    assert summarize([[constant]] * 3).mean == constant


@pytest.mark.parametrize(("first", "second", "decided"), [(3, 3, False), (4, 4, True), (3, 4, True)])
def test_two_constants_are_compared_by_a_permutation_because_they_have_no_spread(
    first: int, second: int, decided: bool
) -> None:
    found = compare([[8.0]] * first, [[25.0]] * second)
    exact = stats.permutation_test(
        (np.full(first, 8.0), np.full(second, 25.0)), lambda a, b: abs(a.mean() - b.mean()), alternative="greater"
    )
    assert found.p == pytest.approx(exact.pvalue)
    assert (found.decided, found.seeds_needed) == (decided, 4)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ([[-171.0, 311.0]], "2 sets: too few for an interval; 3 are needed"),
        ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "2 seeds: too few for an interval; 3 are needed"),
        ([[8.0, 8.0, 8.0]], "all 3 sets equal"),
        ([[7.0, 9.0], [8.0, 8.0], [9.0, 7.0]], "all 3 seeds equal"),
        ([[1.0]], ""),  # a single value claims nothing
    ],
)
def test_too_few_or_equal_values_have_no_interval_and_say_why(table: list[list[float]], reason: str) -> None:
    found = summarize(table)
    assert (math.isnan(found.low), math.isnan(found.high), found.reason) == (True, True, reason)
    assert format_interval(found.low, found.high, found.reason) == (f"({reason})" if reason else "")


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_decide_nothing_and_say_so(seeds: int) -> None:
    found = compare([[1.0, 1.1, 1.2], [1.1, 1.2, 1.0]][:seeds], [[9.0], [9.1], [9.2]])
    assert (found.decided, math.isnan(found.p)) == (False, True)
    assert found.reason.endswith(": too few for an interval; 3 are needed")


@pytest.mark.parametrize("table", [[], [[]], [[1.0], [1.0, 2.0]]])
def test_tables_with_holes_are_refused(table: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="equally many sets"):
        summarize(table)


@pytest.mark.parametrize(
    ("value", "text"),
    [(26000.0, "26,000"), (4.03272, "4.033"), (0.0013, "0.0013"), (-0.547287, "-0.5473"), (1e12, "1e+12"), (0.0, "0")],
)
def test_numbers_have_four_digits_and_counts_all_of_theirs(value: float, text: str) -> None:
    assert format_number(value) == text


def test_an_interval_has_the_digits_of_numbers_and_without_numbers_no_text() -> None:
    assert format_interval(1.23456, 12000.0) == "[1.235, 12,000]"
    assert format_interval(math.nan, math.nan) == ""
    assert format_number(math.inf) == "inf"
