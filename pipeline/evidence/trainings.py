"""The spread of a run's numbers over trainings: what one more training of the same settings may give.

The interval of a claim is over samples or test data of one training. On another kind of machine the same seed is
another training, because rounding differs and training amplifies it; so is another seed. `pipeline spread` trains a run
with further seeds and writes their numbers to reports/runs/<run>/spread.json, with three keys: `run` has the settings
without the seed, `seeds` the seeds, and `values` for each measurement its number per seed and a hash of the fields of
the protocol that decide whether numbers are comparable.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from pipeline import artifacts
from pipeline.evidence.protocol import Content, hash_fields, select
from pipeline.evidence.uncertainty import CONFIDENCE, LEAST
from pipeline.evidence.values import is_measurement, load_values, sort_names

NAME = "spread.json"
NOTED = ("versions.", "code.")  # fields of a protocol whose difference is noted, and does not decide
NETWORK = "network."  # fields of the feature network, which is reproduced too


def predict(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % prediction interval for one more value like these.

    It is not a number if they are too few, or all equal, which says nothing about the spread.
    Unlike the interval of the mean it does not shrink to nothing as values are added: mean +- t s sqrt(1 + 1/n), as in
    Hahn and Meeker, Statistical Intervals, 1991, section 4.8.
    """
    if len(values) < LEAST or len(set(values)) == 1:
        return math.nan, math.nan
    array = np.array(values, dtype=np.float64)
    factor = stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * math.sqrt(1 + 1 / len(array))
    half = float(factor * array.std(ddof=1))
    return float(array.mean()) - half, float(array.mean()) + half


def describe(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spread of a run that was trained once: a claim is metrics, sets and protocol of a run."""
    content = claim["protocol"]
    about = dict(content["run"])
    seed = about.pop("seed")
    declared = load_values(content["protocol"]["metric"]["name"])
    values = {
        name: {"protocol": hash_decisive(content, name), "trainings": [claim["metrics"][name]]}
        for name in sort_names(declared, claim["metrics"])
        if is_measurement(declared, name)
    }
    return {"run": about, "seeds": [seed], "values": values}


def hash_decisive(content: Content, name: str) -> str:
    """Return the hash of the fields of a value's protocol that decide whether a claim is reproduced."""
    leaves = select(content["protocol"], content["values"][name]["fields"])
    return hash_fields({leaf: value for leaf, value in leaves.items() if not leaf.startswith((*NOTED, NETWORK))})


def fits(spread: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two spreads are of the same settings, and of the same values under the same protocols."""
    hashes = [{name: entry["protocol"] for name, entry in each["values"].items()} for each in (spread, other)]
    return bool(spread["run"] == other["run"] and hashes[0] == hashes[1])


def add(spread: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spread with the trainings of another one that fits; a seed that both have is that of the other one."""
    numbers = {
        name: dict(zip(spread["seeds"], entry["trainings"], strict=True))
        | dict(zip(other["seeds"], other["values"][name]["trainings"], strict=True))
        for name, entry in spread["values"].items()
    }
    seeds = sorted({*spread["seeds"], *other["seeds"]})
    values = {
        name: {"protocol": entry["protocol"], "trainings": [numbers[name][seed] for seed in seeds]}
        for name, entry in spread["values"].items()
    }
    return {"run": spread["run"], "seeds": seeds, "values": values}


def read(project: Path, run: str, claim: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a run's spread with the claim's own training, or None if there is none of the claim's settings."""
    path = project / artifacts.REPORTS / "runs" / run / NAME
    if not path.exists():
        return None
    spread, own = artifacts.read_json(path), describe(claim)
    return add(spread, own) if fits(spread, own) else None


def find_prediction(spread: Mapping[str, Any] | None, name: str) -> tuple[float, float]:
    """Return what one more training may give for a value, or not a number."""
    return predict(spread["values"][name]["trainings"]) if spread else (math.nan, math.nan)
