"""One file, one kind of data: how values of this kind are checked, written, learnt, drawn, shown and served.

A data set is a mapping of named fields of equal length, each of one kind. This file holds what all kinds share:

Spec             properties of a field that a model needs, such as its shape
write            turns what a source prepared into the files of data/prepared/<data>, and returns the manifest
examples         training examples of a split, for the loop in training.py
require          refuses, before anything is computed, data that a model's config or the sampling does not fit
check            refuses values that would give a plausible number for nonsense
show             many values as one thing to look at or listen to: an Exhibit
encode           one value as text, for the served model
draw             makes the files of the stage `sample`: for the metrics, and exhibits for the eye
look, find_alarms   what is shown and measured eight times per training, and what in it is alarming
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pydantic import BaseModel, ConfigDict

from pipeline import artifacts, plugins
from pipeline.artifacts import ArtifactError
from pipeline.randomness import make_generator

if TYPE_CHECKING:
    from torch import Tensor


MOST_DUPLICATES = 0.8  # share of the samples; the default VAE has 0.75 after a quarter of its training, 0.06 in the end


class FieldSpec(BaseModel):
    """Properties of one field that a model needs; each kind adds its own."""

    model_config = ConfigDict(frozen=True)

    kind: str


Fields = Mapping[str, Any]  # each field's spec, by the field's name


class Exhibit(NamedTuple):
    """Something to look at or listen to; only its suffix (.png, .wav, .txt, ...) decides how it is shown."""

    name: str
    suffix: str
    content: bytes


class Drawn(NamedTuple):
    """The output of the stage `sample`: tensors by file and name, for the metrics, and exhibits."""

    files: dict[str, dict[str, Tensor]]
    exhibits: list[Exhibit]


class Look(NamedTuple):
    """The exhibits of a preview, and the values that it adds to the record."""

    exhibits: list[Exhibit]
    values: dict[str, float]


def parse_fields(entries: Mapping[str, Any]) -> dict[str, FieldSpec]:
    """Turn a manifest's `fields` into specs: {"images": {"kind": "images", "shape": [1, 28, 28]}, ...}."""
    return {
        name: cast("FieldSpec", plugins.load("kinds", entry["kind"]).Spec.model_validate(entry))
        for name, entry in entries.items()
    }


def dump_fields(fields: Fields) -> dict[str, Any]:
    """Return the JSON form of fields."""
    return {name: spec.model_dump(mode="json") for name, spec in fields.items()}


def flatten_fields(fields: Fields) -> dict[str, Any]:
    """Return the kind that makes the fields, and what all of them specify, as a model's config.json has it.

    Raises:
        ArtifactError: if two fields specify the same.
    """
    specs = dump_fields(fields)
    kinds = [spec["kind"] for spec in specs.values()]  # JSON has sorted the fields: labels come before points
    kind = next(kind for kind in kinds if hasattr(plugins.load("kinds", kind), "make_fields"))
    pairs = [(key, value) for spec in specs.values() for key, value in spec.items() if key != "kind"]
    if len(dict(pairs)) < len(pairs):
        msg = f"two fields specify the same: {specs}"
        raise ArtifactError(msg)
    return {"kind": kind, "spec": dict(pairs)}


def unflatten_fields(about: Mapping[str, Any]) -> dict[str, FieldSpec]:
    """Return the fields that flatten_fields wrote."""
    fields: dict[str, FieldSpec] = plugins.load("kinds", about["kind"]).make_fields(**about["spec"])
    return fields


def read_fields(data: str) -> dict[str, FieldSpec]:
    """Return the fields of the prepared data set `data`."""
    return parse_fields(artifacts.read_manifest(data)["fields"])


def find_field(fields: Fields, kinds: Sequence[str]) -> str:
    """Return the name of the first field that is of one of the kinds.

    Raises:
        ArtifactError: if there is none.
    """
    for name, spec in fields.items():
        if spec.kind in kinds:
            return name
    found = ", ".join(f"{name} ({spec.kind})" for name, spec in fields.items())
    msg = f"expected a field of the kind {' or '.join(kinds)}, the data has {found}"
    raise ArtifactError(msg)


def draw_sets(loaded: Any, seed: int, count: int, sets: int) -> dict[str, Tensor]:
    """Draw independent sets of `count` samples, named "0", "1", ..., each from its own generator."""
    device = loaded.model.device
    return {
        str(index): loaded.sample(count, make_generator(seed, "sample", index, device=device)) for index in range(sets)
    }


def give(fields: Fields, names: Sequence[str], count: int) -> dict[str, Tensor]:
    """Return the given fields of `count` samples, one tensor per field."""
    return {name: plugins.load("kinds", fields[name].kind).give(fields[name], count) for name in names}


def duplicate_share(samples: Tensor, real: Tensor) -> float:
    """Return the share of samples (N, ...) that are much closer to another one than real examples are: 1 is collapse.

    Much closer: within half the median distance from a real example (M, ...) to the nearest other, in equal counts.
    Arora and Zhang (2018) look for duplicates by eye; this is their birthday test with a distance.
    """
    count = min(len(samples), len(real))
    radius = _nearest(real[:count]).median() / 2
    return float((_nearest(samples[:count]) <= radius).double().mean())


def _nearest(values: Tensor) -> Tensor:
    """Euclidean distance from each of (N, ...) to the nearest other, (N,)."""
    import torch

    flat = values.flatten(1).double()
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf).amin(dim=1)
