"""Points in D dimensions of a known density, float32 (N, D): mode coverage has a right answer.

A source's `prepare` returns Points; the stage `prepare` calls `write`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.kinds import (
    Drawn,
    Exhibit,
    FieldSpec,
    Look,
    draw_one,
    draw_sets,
    dump_fields,
    images,
    question_classes,
    question_examples,
)
from pipeline.kinds import labels as class_labels
from pipeline.params import Source
from pipeline.randomness import make_generator

if TYPE_CHECKING:
    from pipeline.batches import Rows

PREVIEW = 2000  # samples of a preview
SIDE = 256  # pixels of the picture
BORDER = 1.5  # of the coordinates that the picture shows
TOGETHER = PREVIEW  # samples that are shown as one: a single point shows nothing
WITHIN = 3  # standard deviations around a mode that cover it


WITH = ("labels",)  # kinds of the other fields


class Spec(FieldSpec):
    """Dimensions D."""

    kind: Literal["points"] = "points"
    dimensions: int


class PointConfig(Source):
    """Keys that every point source shares."""

    KIND: ClassVar = "points"

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
    """Write each split's points; return the manifest.

    Raises:
        ArtifactError: if points are not float32, which nothing rounds on the way, or not finite.
    """
    del config
    entries = {}
    for name, (values, labels) in points.splits.items():
        if values.dtype != torch.float32 or not values.isfinite().all():
            msg = f"{folder} {name}: expected finite float32 points, got {values.dtype}, "
            raise ArtifactError(msg + f"{int((~values.isfinite()).sum())} of {values.numel()} coordinates not finite")
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
    fields = make_fields(points.modes.size(1), len(points.modes))
    known = {"modes": points.modes.tolist(), "deviation": points.deviation}
    return {"fields": dump_fields(fields), "known": known, "splits": entries}


def question_data(data: str, manifest: dict[str, Any], config: PointConfig) -> list[str]:
    """Return a sentence for everything about a set that is perhaps not what the user meant, with the key to change."""
    return [*question_examples(data, manifest, config), *question_classes(data, manifest, config)]


def show_data(folder: Path, manifest: dict[str, Any]) -> Exhibit:
    """Show points of the training split."""
    del manifest
    return show("sheet", artifacts.read_tensors(folder / "train.safetensors")["points"][:PREVIEW], None)


def make_fields(dimensions: int, classes: int) -> dict[str, FieldSpec]:
    """Return the fields of a set of points, each labelled with its mode."""
    return {"points": Spec(dimensions=dimensions), "labels": class_labels.Spec(classes=classes)}


def examples(split: dict[str, Tensor], config: Any, seed: int) -> Rows:
    """Return the training examples of a split."""
    from pipeline.batches import Rows  # Lightning takes seconds to import, and preparing data does not need it

    del config, seed
    return Rows(split)


def show(name: str, points: Tensor, loaded: Any) -> Exhibit:
    """Show points (N, 2 or more) as one PNG, 256 x 256 for [-1.5, 1.5]: dark where many are."""
    cells = ((points[:, :2] + BORDER) / (2 * BORDER) * SIDE).long().clamp(0, SIDE - 1)
    places = (SIDE - 1 - cells[:, 1], cells[:, 0])
    counts = torch.zeros(SIDE, SIDE).index_put_(places, torch.ones(len(cells)), accumulate=True)
    return images.show(name, (255 * (-counts).exp()).byte()[None, None], loaded)


def to_file(name: str, point: Tensor, loaded: Any) -> Exhibit:
    """Return the coordinates of one point float32 (D,) as a JSON list."""
    del loaded
    return Exhibit(name, ".json", json.dumps(point.tolist()).encode())


def encode(loaded: Any, generator: torch.Generator, sampling: Any) -> str:
    """Draw one point for the served model: a JSON list of its coordinates."""
    return to_file("", draw_one(loaded, generator, sampling), loaded).content.decode()


def look(loaded: Any, held_out: dict[str, Tensor], manifest: dict[str, Any], seed: int, sampling: Any) -> Look:
    """Show 2,000 samples, and count the modes that have one within three standard deviations."""
    del held_out, sampling
    samples = loaded.sample(PREVIEW, make_generator(seed, "preview", device=loaded.model.device))
    known = manifest["known"]
    distances, nearest = torch.cdist(samples.double(), torch.tensor(known["modes"]).double()).min(dim=1)
    covered = nearest[distances <= WITHIN * known["deviation"]].unique().numel()
    return Look([show("samples", samples, loaded)], {"modes_covered": float(covered)})


def find_alarms(newest: dict[str, tuple[int, float]], manifest: dict[str, Any]) -> list[str]:
    """Return a sentence if the newest preview covers less than half of the modes."""
    modes = len(manifest["known"]["modes"])
    if "modes_covered" not in newest or newest["modes_covered"][1] >= modes / 2:
        return []
    step, covered = newest["modes_covered"]
    return [f"step {step}: mode collapse: {covered:.0f} of {modes} modes covered"]


def find_silent_alarms(held_out: dict[str, Tensor], manifest: dict[str, Any]) -> list[str]:
    """Return a sentence if there are more modes than a preview has samples: good samples may then miss half, too."""
    del held_out
    modes = len(manifest["known"]["modes"])
    few = f"no verdict on a collapse: {PREVIEW} samples of a preview are too few for {modes} modes"
    return [] if modes <= PREVIEW else [few]


def draw(loaded: Any, sampling: Any, seed: int, manifest: dict[str, Any], read: Callable[[str], Any]) -> Drawn:
    """Draw sets of points. Files: generated (sets "0", "1", ... of float32 (N, D)), and what they were given."""
    del manifest, read
    files = draw_sets(loaded, seed, sampling.count, sampling.sets)
    return Drawn(files, [show("samples", files["generated"]["0"], loaded)])
