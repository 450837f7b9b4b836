"""Image sets: what every image source shares, and how its images are checked and written.

A source's `prepare` returns ImageSplits; the stage `prepare` calls `write`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline import artifacts
from pipeline.artifacts import SPLITS, ArtifactError, ImageSpec
from pipeline.formats.own_files import FileReport, write_reports
from pipeline.params import Source
from pipeline.randomness import make_generator


class ImageConfig(Source):
    """Keys that every image source shares, so that `source` alone changes the data of a run."""

    KIND: ClassVar = "images"

    path: str = Field(min_length=1, description="folder of one's own pictures, for image_folder; others ignore it")
    split_seed: int = Field(ge=0, description="seed of the stratified split")
    validation: float = Field(gt=0, lt=1, description="share of the images outside the test split")


@dataclass(frozen=True)
class ImageSplits:
    """Images uint8 (N, C, H, W), maybe memory-mapped, and labels int64 (N,) of each split; reports of the files."""

    splits: dict[str, tuple[Tensor, Tensor]]
    classes: int
    names: Sequence[str] = ()
    files: Sequence[FileReport] = ()


def split_stratified(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split indices of labels int64 (N,) into (rest, part): each class gives its `share`, rounded, to the part."""
    rest, part = [], []
    for label in labels.unique(sorted=True):
        indices = (labels == label).nonzero().squeeze(1)
        indices = indices[torch.randperm(len(indices), generator=generator)]
        count = round(share * len(indices))
        part.append(indices[:count])
        rest.append(indices[count:])
    return torch.cat(rest).sort().values, torch.cat(part).sort().values


def hold_out(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], config: ImageConfig
) -> ImageSplits:
    """Split off the validation images, and turn uint8 arrays (N, H, W) or (N, C, H, W) and labels (N,) into tensors."""
    (images, labels), held_out = (_make_tensors(*part) for part in (train, test))
    rest, part = split_stratified(labels, config.validation, make_generator(config.split_seed, "validation"))
    splits = {"train": (images[rest], labels[rest]), "validation": (images[part], labels[part]), "test": held_out}
    return ImageSplits(splits, classes=int(max(labels.max(), held_out[1].max())) + 1)


def _make_tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    if images.ndim == 3:
        images = images[:, None]
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64))


def _digest(pixels: Tensor, name: str) -> list[bytes]:
    """Return a hash of each image of a split."""
    bar = tqdm(pixels, desc=f"check {name}", unit=" images", unit_scale=True, disable=None)
    return [blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in bar]


def write(folder: Path, images: ImageSplits, config: ImageConfig) -> dict[str, Any]:
    """Write each split's images and labels; return the manifest.

    Raises:
        ArtifactError: if dtype, shape or counts of a split are not those of images with labels.
    """
    del config
    entries = {}
    known: dict[str, set[bytes]] = {}
    for name in (name for name in SPLITS if name in images.splits):
        pixels, labels = images.splits[name]
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or len(pixels) != len(labels) or not len(pixels):
            msg = f"{folder} {name}: expected uint8 (N, C, H, W) and N labels, got {pixels.dtype} {tuple(pixels.shape)}"
            raise ArtifactError(msg)
        path = folder / f"{name}.safetensors"
        layout = {"images": (pixels.dtype, pixels.shape), "labels": (labels.dtype, labels.shape)}
        with artifacts.create_tensors(path, layout) as tensors:  # memory-mapped: no copy in memory
            tensors["images"].copy_(pixels)
            tensors["labels"].copy_(labels)
        digests = _digest(pixels, name)
        shared = {f"shared_with_{other}": sum(map(seen.__contains__, digests)) for other, seen in known.items()}
        known[name] = set(digests)
        entries[name] = {
            "sha256": artifacts.digest(path),
            "count": len(pixels),
            "shape": list(pixels.shape),
            "minimum": int(pixels.min()),
            "maximum": int(pixels.max()),
            "per_class": torch.bincount(labels, minlength=images.classes).tolist(),
            "duplicates": len(digests) - len(known[name]),
            **shared,
        }
    channels, height, width = images.splits["train"][0].shape[1:]
    spec = ImageSpec(shape=(channels, height, width), classes=images.classes)
    report = write_reports(folder, images.files)
    return {"spec": spec.model_dump(mode="json"), "classes": list(images.names), "splits": entries, **report}
