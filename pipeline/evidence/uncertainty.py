"""Means with their uncertainty over training seeds and sample sets, and comparisons that may end inconclusive.

A metric's values form a table: one row a training seed, one column a set of samples. Training and sampling variance are
separated by a one-way random-effects analysis of variance. Intervals are Student's t over the seeds' means, because
sets of one training are not independent trainings. FID is never bootstrapped: resampling with replacement repeats
images, and its interval then excludes FID's own value. Numbers are shown with four digits.

Fewer than LEAST values have no interval: Student's t of two values is 12.7 standard errors wide to each side, and
stands on nothing but the assumption that they are normal. Equal values have none either, because they say nothing about
the spread. scipy.stats is imported where it is used: it takes a second, and every stage reads this file.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

CONFIDENCE = 0.95
LEAST = 3  # seeds or sets of an interval
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Summary:
    """A metric over S training seeds with K sets of samples each.

    low, high: the 95 % interval of the mean; over seeds if there are several, else over the sets of the one seed; not a
    number if those are fewer than LEAST, or all equal. reason: why there is no interval, if there are several values.
    sampling_sd, training_sd: standard deviations of one set around its seed's mean, and of seeds' true
    means; not a number where there is one set or one seed.
    """

    seeds: int
    sets: int
    mean: float
    low: float
    high: float
    reason: str
    sampling_sd: float
    training_sd: float


@dataclass(frozen=True)
class Comparison:
    """Difference of two means (second minus first), Welch's p-value, and whether it is decided.

    A decided difference of 0: both sides are the same constant. seeds_needed: seeds a side that would decide if means
    and spreads stayed as they are, 0 if that is unknown or more than MOST_SEEDS. reason: why there is no p; else empty.
    """

    difference: float
    p: float
    decided: bool
    seeds_needed: int
    reason: str = ""


def summarize(table: Sequence[Sequence[float]]) -> Summary:
    """Return mean, interval and variance components of table[seed][set].

    Raises:
        ValueError: if the rows are empty or of unequal length.
    """
    if not table or len({len(row) for row in table}) != 1 or not table[0]:
        msg = f"expected equally many sets for every seed, got {[len(row) for row in table]}"
        raise ValueError(msg)
    values = np.array(table, dtype=np.float64)  # (S, K)
    seeds, sets = values.shape
    means = values.mean(axis=1)
    sampling = float(values.var(axis=1, ddof=1).mean()) if sets > 1 else math.nan
    training = math.nan
    if seeds > 1:
        training = max(0.0, float(means.var(ddof=1)) - (sampling / sets if sets > 1 else 0.0))
    single, name = (means, "seeds") if seeds > 1 else (values[0], "sets")
    reason = explain_absence(single, name)
    half = math.nan if reason or len(single) < LEAST else half_width(single)
    mean = float(single[0] if not np.ptp(single) else values.mean())  # the mean of equal values may differ by a bit
    return Summary(seeds, sets, mean, mean - half, mean + half, reason, math.sqrt(sampling), math.sqrt(training))


def summarize_seeds(table: Sequence[Sequence[float]]) -> Summary:
    """Return the same of trainings: the sets of a single seed give no interval, since they are of one training."""
    summary = summarize(table)
    if len(table) > 1:
        return summary
    return replace(summary, low=math.nan, high=math.nan, reason=f"1 seed: too few for an interval; {LEAST} are needed")


def explain_absence(values: np.ndarray, name: str) -> str:
    """Return why several values (N,) of things called `name` have no interval; empty if they have one, or N is 1."""
    if 1 < len(values) < LEAST:
        return f"{len(values)} {name}: too few for an interval; {LEAST} are needed"
    return f"all {len(values)} {name} equal" if len(values) > 1 and not np.ptp(values) else ""


def half_width(values: np.ndarray) -> float:
    """Return half of Student's 95 % interval of the mean of independent values (N,)."""
    from scipy import stats

    spread = float(values.std(ddof=1))
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * spread / math.sqrt(len(values))


def compare(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Comparison:
    """Compare two tables by their seeds' means.

    Decided means: p below 0.05 and intervals that do not overlap. With fewer than LEAST seeds on a side nothing is
    decided, unless all values are the same. Where no side has any spread, Welch's test has no p, and that of a
    permutation of the seeds takes its place.
    """
    left, right = (np.array(table, dtype=np.float64).mean(axis=1) for table in (first, second))
    fewest = min(len(left), len(right))
    is_constant = fewest > 1 and not np.ptp(left) and not np.ptp(right)
    # a rounded mean would give constants a spread or a difference
    difference = float(right[0] - left[0] if is_constant else right.mean() - left.mean())
    if is_constant and not difference:
        return Comparison(0.0, 1.0, decided=True, seeds_needed=fewest)
    if fewest < LEAST:
        seeds = f"{fewest} training seeds" if fewest > 1 else "one training seed"
        reason = f"{seeds}: too few for an interval; {LEAST} are needed"
        return Comparison(difference, math.nan, decided=False, seeds_needed=0, reason=reason)
    if is_constant:
        p = permute_constants(len(left), len(right))
        needed = next(seeds for seeds in itertools.count(LEAST) if permute_constants(seeds, seeds) < 1 - CONFIDENCE)
        return Comparison(difference, p, p < 1 - CONFIDENCE, needed)
    from scipy import stats

    spreads = [float(means.std(ddof=1)) for means in (left, right)]
    p = float(stats.ttest_ind(left, right, equal_var=False).pvalue)
    apart = abs(difference) > half_width(left) + half_width(right)
    return Comparison(difference, p, apart and p < 1 - CONFIDENCE, count_seeds(difference, sum(spreads)))


def permute_constants(first: int, second: int) -> float:
    """Return the p-value of two constants of so many seeds: the share of ways to deal them that are as far apart."""
    return (2 if first == second else 1) / math.comb(first + second, first)


def count_seeds(difference: float, spread: float) -> int:
    """Return the least n >= LEAST with |difference| > t(n - 1) * spread / sqrt(n), 0 if it is more than MOST_SEEDS.

    spread: sum of both standard deviations.
    """
    from scipy import stats

    seeds = np.arange(LEAST, MOST_SEEDS + 1)
    widths = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1) * spread / np.sqrt(seeds)
    enough = seeds[widths < abs(difference)]
    return int(enough[0]) if len(enough) else 0


def format_number(value: float) -> str:
    """Return a number with four significant digits, counts in full."""
    return f"{value:,.0f}" if abs(value) < 1e9 and value == int(value) else f"{value:.4g}"


def format_interval(low: float, high: float, reason: str = "") -> str:
    """Return an interval as text, `[8.7, 9.1]`; if it is not a number the reason, `(all 3 sets equal)`, or nothing."""
    if math.isnan(low):
        return f"({reason})" if reason else ""
    return f"[{format_number(low)}, {format_number(high)}]"
