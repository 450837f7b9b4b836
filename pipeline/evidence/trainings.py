"""The spread of a run's numbers over trainings: what one more training of the same settings may give.

The interval of a claim is over samples or test data of one training. On another kind of machine the same seed is
another training, because rounding differs and training amplifies it; so is another seed. `pipeline spread` trains a run
with further seeds and writes their numbers to reports/runs/<run>/spread.json, with three keys: `run` has the settings
without the seed, `seeds` the seeds, and `values` for each value its number per seed and a hash of the fields of the
protocol that decide whether numbers are comparable.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifacts
from pipeline.evidence.protocol import Content, hash_fields, select
from pipeline.evidence.uncertainty import CONFIDENCE, LEAST

NAME = "spread.json"
NOTED = ("versions.", "code.")  # fields of a protocol whose difference is noted, and does not decide
NETWORK = "network."  # fields of the feature network, which is reproduced too


def predict(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % prediction interval for one more value like these.

    It is not a number if they are too few, or all equal, which says nothing about the spread.
    Unlike the interval of the mean it does not shrink to nothing as values are added: mean +- t s sqrt(1 + 1/n), as in
    Hahn and Meeker, Statistical Intervals, 1991, chapter 4. The values are taken for normal and independent.
    """
    if len(values) < LEAST or len(set(values)) == 1:
        return math.nan, math.nan
    from scipy import stats

    array = np.array(values, dtype=np.float64)
    factor = stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * math.sqrt(1 + 1 / len(array))
    half = float(factor * array.std(ddof=1))
    return float(array.mean()) - half, float(array.mean()) + half


def describe(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spread of a run that was trained once: a claim is metrics, sets and protocol of a run."""
    content = claim["protocol"]
    about = dict(content["run"])
    seed = about.pop("seed")
    values = {
        name: {"protocol": hash_decisive(content, name), "trainings": [value]}
        for name, value in claim["metrics"].items()
    }
    return {"run": about, "seeds": [seed], "values": values}


def hash_decisive(content: Content, name: str) -> str:
    """Return the hash of the fields of a value's protocol that decide whether a claim is reproduced."""
    leaves = select(content["protocol"], content["values"].get(name, {}).get("fields", ()))
    return hash_fields({leaf: value for leaf, value in leaves.items() if not leaf.startswith((*NOTED, NETWORK))})


def fits(spread: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two spreads are of the same settings, and their common values of the same protocols."""
    ours, theirs = spread["values"], other["values"]
    common = ours.keys() & theirs.keys()
    same = all(ours[name]["protocol"] == theirs[name]["protocol"] for name in common)
    return spread["run"] == other["run"] and bool(common) and same


def by_seed(spread: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Return the numbers of each training."""
    values = {name: entry["trainings"] for name, entry in spread["values"].items()}
    return {seed: {name: values[name][at] for name in values} for at, seed in enumerate(spread["seeds"])}


def add(spread: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the common values of two spreads; a training that both have is that of the other one.

    Raises:
        ValueError: if they do not fit.
    """
    if not fits(spread, other):
        msg = "expected spreads of one run's settings and protocols"
        raise ValueError(msg)
    numbers = by_seed(spread) | by_seed(other)
    seeds = sorted(numbers)
    values = {
        name: {"protocol": entry["protocol"], "trainings": [numbers[seed][name] for seed in seeds]}
        for name, entry in spread["values"].items()
        if name in other["values"]
    }
    return {"run": spread["run"], "seeds": seeds, "values": values}


def belongs(spread: Mapping[str, Any], claim: Mapping[str, Any]) -> bool:
    """Return whether a spread has just this claim as one of its trainings: other numbers are of other code or bits."""
    own = describe(claim)
    numbers = by_seed(spread).get(own["seeds"][0], {})
    return fits(spread, own) and bool(numbers) and all(claim["metrics"].get(name) == numbers[name] for name in numbers)


def read(project: Path, run: str, claim: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the spread of a run with a claim, or None if it has none."""
    path = project / artifacts.REPORTS / "runs" / run / NAME
    spread: dict[str, Any] = artifacts.read_json(path) if path.exists() else {}
    return spread if spread and belongs(spread, claim) else None


def find_prediction(spread: Mapping[str, Any] | None, name: str) -> tuple[float, float]:
    """Return what one more training may give for a value, or not a number."""
    return predict(spread["values"][name]["trainings"] if spread and name in spread["values"] else ())
