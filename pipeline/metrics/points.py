"""Mode coverage of points against the mixture of Gaussians that they were drawn from: every answer is known.

Srivastava et al. 2017 (VEEGAN): a point is of high quality within three standard deviations of the nearest mode; a mode
is captured if a high-quality point is nearest to it. Lin et al. 2018 (PacGAN): KL of the histogram of modes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.evidence.values import SETS, Value, fill_name
from pipeline.kinds.labels import Rule
from pipeline.params import Known, Measure, Params, Section
from pipeline.randomness import shuffle

KIND = "points"
SPLITS = ("test",)
NUMBERS = "points float32, metrics float64"
# Fields of the protocol. No two mixtures have the same test points.
TEST = ("reference.sha256.test", "counts.samples", "numbers")
DRAWN = ("metric.sampling.sets", "metric.sampling.labels")
NEAR = "metric.deviations"


def _measure(*depends: str, **others: Any) -> Value:
    """Declare a value of generated points."""
    return Value(over=SETS, counts="samples", depends=(*TEST, *DRAWN, *depends), **others)


MEASURED = {
    "modes_covered": _measure(NEAR, direction="higher", unit="modes", headline=True),
    "high_quality": _measure(NEAR, direction="higher", unit="share", headline=True),
    "mode_kl_nats": _measure(direction="lower", unit="nats"),
    # Real points have the entropy of the mixture; points too close to the modes go above it.
    "log_density_nats": _measure(unit="nats per point"),
}
VALUES = {
    "samples": Value(role="count", unit="samples", headline=True, in_protocol=True),
    "modes": Value(role="count", unit="modes"),
    **MEASURED,
    **{
        f"{name}_real": Value(
            role="real",
            of=name,
            unit=value.unit,
            depends=tuple(field for field in value.depends if field not in DRAWN),
        )
        for name, value in MEASURED.items()
    },
}


class Sampling(Section):
    """What the stage `sample` draws."""

    count: int = Field(ge=100, description="points; the literature uses 2500")
    sets: int = Field(ge=1, description="independent sets of so many points; metrics are means over them")
    labels: Rule = "test"


class Config(Measure):
    """How mode coverage is measured."""

    sampling: Sampling
    deviations: float = Field(gt=0, description="standard deviations around a mode that count as high quality")


@dataclass(frozen=True)
class Evidence:
    """S generated sets and test points float32 (N, D); modes (K, D) of an equal mixture, each N(mode, deviation^2)."""

    generated: Sequence[Tensor]
    test: Tensor
    modes: Tensor
    deviation: float


def gather(key: str, settings: Params, circumstances: Mapping[str, Any]) -> Evidence:
    """Read generated and test points, and the density that they come from."""
    del circumstances
    data = settings.runs[key].data
    generated = artifacts.read_tensors(artifacts.RUNS / key / "samples" / "generated.safetensors")
    known = artifacts.read_manifest(data)["known"]
    test = artifacts.read_split(data, "test")["points"]
    return Evidence(list(generated.values()), test, torch.tensor(known["modes"]), known["deviation"])


def require(key: str, settings: Params, known: Mapping[str, Known]) -> None:
    """Accept every set of points: its source says how many there are."""
    del key, settings, known


def compute(evidence: Evidence, config: Config) -> dict[str, list[float]]:
    """Return coverage and quality of each generated set, and the same of as many test points under `_real`.

    Raises:
        ArtifactError: if points are not finite or of another dimension than the modes.
    """
    for points in evidence.generated:
        if points.size(1) != evidence.modes.size(1) or not points.isfinite().all():
            shapes = f"{tuple(points.shape)} for modes {tuple(evidence.modes.shape)}"
            msg = f"generated points: expected finite values of the modes' dimension, got {shapes}"
            raise ArtifactError(msg)
    count = min(len(evidence.generated[0]), len(evidence.test))
    found = [
        measure_points(shuffle(points)[:count], evidence.modes, evidence.deviation, config.deviations)
        for points in (*evidence.generated, evidence.test)
    ]
    values = {"samples": [float(count)], "modes": [float(len(evidence.modes))]}
    values |= {name: [entry[name] for entry in found[:-1]] for name in found[0]}
    return values | {fill_name(VALUES, f"{name}_real"): [value] for name, value in found[-1].items()}


def measure_points(points: Tensor, modes: Tensor, deviation: float, within: float) -> dict[str, float]:
    """Measure points (N, D).

    modes_covered: modes with a high-quality point. high_quality: share of the points. mode_kl_nats: KL of the nearest
    modes' histogram from the uniform one. log_density_nats: mean log density under the mixture; real points reach minus
    its entropy, points too close to the modes go above it.
    """
    points, modes = points.double(), modes.double()
    distances, nearest = torch.cdist(points, modes).min(dim=1)
    good = distances <= within * deviation
    shares = nearest.bincount(minlength=len(modes)).double() / len(points)
    return {
        "modes_covered": float(nearest[good].unique().numel()),
        "high_quality": float(good.double().mean()),
        "mode_kl_nats": float(torch.special.xlogy(shares, shares * len(modes)).sum()),
        "log_density_nats": float(log_density(points, modes, deviation).mean()),
    }


def log_density(points: Tensor, modes: Tensor, deviation: float) -> Tensor:
    """Return log 1/K sum_k N(x; mode_k, deviation^2 I) of points (N, D), in nats, (N,)."""
    squared = (points[:, None] - modes).square().sum(dim=2)  # (N, K)
    constant = 0.5 * points.size(1) * math.log(2 * math.pi * deviation**2) + math.log(len(modes))
    return torch.logsumexp(-0.5 * squared / deviation**2, dim=1) - constant
