"""Every path, and the only readers and writers of what stages exchange: prepared tensors, weights, samples, metrics.

All paths are relative to the working folder, which DVC sets to the repository or, in `dvc exp run --temp`, to a copy.
Tensors are safetensors, everything else is JSON: reading a file never runs code.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

CHECKED = Path("data/checked.json")
RAW = Path("data/raw")
PREPARED = Path("data/prepared")
FEATURES = Path("data/features")
RUNS = Path("data/runs")
REPORTS = Path("reports")
SPLITS = ("train", "validation", "test")


class ArtifactError(RuntimeError):
    """A file between stages is missing or broken; the message names it and the stage that makes it."""


class ImageSpec(BaseModel):
    """What a model must know of an image set: shape (C, H, W), number of classes (0 without labels)."""

    model_config = ConfigDict(frozen=True)

    shape: tuple[int, int, int]
    classes: int


class PointSpec(BaseModel):
    """What a model must know of a point set: dimensions D, number of modes."""

    model_config = ConfigDict(frozen=True)

    dimensions: int
    classes: int


class TextSpec(BaseModel):
    """What a model must know of a text set: the vocabulary's size V."""

    model_config = ConfigDict(frozen=True)

    vocabulary: int


Spec = ImageSpec | PointSpec | TextSpec
SPECS: dict[str, type[Spec]] = {"images": ImageSpec, "points": PointSpec, "text": TextSpec}


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Read a JSON file that a stage wrote."""
    if not path.exists():
        msg = f"{path}: not found; run `dvc repro` to make it"
        raise ArtifactError(msg)
    return json.loads(path.read_text(encoding="utf-8"))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    os.replace(partial, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file that a stage wrote."""
    if not path.exists():
        msg = f"{path}: not found; run `dvc repro` to make it"
        raise ArtifactError(msg)
    try:
        return load_file(path)
    except SafetensorError as error:
        msg = f"{path}: not a complete safetensors file ({error}); delete it and run `dvc repro`"
        raise ArtifactError(msg) from error


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(name: str) -> dict[str, Any]:
    """Read the manifest of the prepared data set `name`."""
    manifest: dict[str, Any] = read_json(PREPARED / name / "manifest.json")
    return manifest


def read_split(name: str, split: str) -> dict[str, Tensor]:
    """Read one split of a prepared data set, after checking its SHA-256 against the manifest.

    Raises:
        ArtifactError: if the file is missing or is not the one that the manifest describes.
    """
    path = PREPARED / name / f"{split}.safetensors"
    splits = read_manifest(name)["splits"]
    if split not in splits:
        msg = f"{path}: data.{name} has no {split} split, it has {', '.join(splits)}"
        raise ArtifactError(msg)
    expected = splits[split]["sha256"]
    if not path.exists() or (found := digest(path)) != expected:
        got = found if path.exists() else "no file"
        msg = f"{path}: expected SHA-256 {expected}, found {got}; delete {path.parent} and run `dvc repro`"
        raise ArtifactError(msg)
    return read_tensors(path)


def read_spec(name: str) -> Spec:
    """Return what a model must know of the prepared data set `name`."""
    manifest = read_manifest(name)
    return SPECS[manifest["kind"]].model_validate(manifest["spec"])
