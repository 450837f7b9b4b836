"""Point sets: synthetic points with a known density, for which mode coverage has a right answer.

A source's `prepare` returns Points; the stage `prepare` calls `write`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from pipeline import artifacts
from pipeline.artifacts import PointSpec
from pipeline.params import Source


class PointConfig(Source):
    """Keys that every point source shares."""

    KIND: ClassVar = "points"

    path: str = Field(min_length=1, description="ignored: points are drawn by seed")
    count: int = Field(ge=100, description="points of the training split; validation and test hold a fifth each")
    data_seed: int = Field(ge=0, description="seed of the points")


@dataclass(frozen=True)
class Points:
    """Points float32 (N, D) with the mode that each was drawn from, int64 (N,), of each split.

    modes: the means of a mixture of equal isotropic Gaussians, float32 (K, D), of standard deviation `deviation`.
    """

    splits: dict[str, tuple[Tensor, Tensor]]
    modes: Tensor
    deviation: float


def write(folder: Path, points: Points, config: PointConfig) -> dict[str, Any]:
    """Write each split's points; return the manifest."""
    del config
    entries = {}
    for name, (values, labels) in points.splits.items():
        path = folder / f"{name}.safetensors"
        artifacts.write_tensors(path, {"points": values, "labels": labels})
        entries[name] = {
            "sha256": artifacts.digest(path),
            "count": len(values),
            "shape": list(values.shape),
            "minimum": float(values.min()),
            "maximum": float(values.max()),
            "per_class": labels.bincount(minlength=len(points.modes)).tolist(),
        }
    spec = PointSpec(dimensions=points.modes.size(1), classes=len(points.modes))
    known = {"modes": points.modes.tolist(), "deviation": points.deviation}
    return {"spec": spec.model_dump(mode="json"), "known": known, "splits": entries}
