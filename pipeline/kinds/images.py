"""Images: uint8 (N, C, H, W) with labels int64 (N,).

A source's `prepare` returns ImageSplits; the stage `prepare` calls `write`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline import artifacts
from pipeline.artifacts import SPLITS, ArtifactError
from pipeline.formats.own_files import FileReport, write_reports
from pipeline.kinds import MOST_DUPLICATES, Drawn, Exhibit, FieldSpec, Look, draw_sets, dump_fields, duplicate_share
from pipeline.kinds import labels as class_labels
from pipeline.params import Source
from pipeline.randomness import make_generator

if TYPE_CHECKING:
    from pipeline.batches import Rows

GRID = 100  # samples of a picture
PREVIEW = 64  # samples of a preview
LEAST = 50  # images that a metric is computed of


WITH = ("labels",)  # kinds of the other fields


class Spec(FieldSpec):
    """Shape (C, H, W)."""

    kind: Literal["images"] = "images"
    shape: tuple[int, int, int]


class ImageConfig(Source):
    """Keys that every image source shares, so that changing `source` suffices to change the data of a run."""

    KIND: ClassVar = "images"

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
    fields = make_fields((channels, height, width), images.classes)
    report = write_reports(folder, images.files)
    return {"fields": dump_fields(fields), "classes": list(images.names), "splits": entries, **report}


def make_fields(shape: tuple[int, int, int], classes: int) -> dict[str, FieldSpec]:
    """Return the fields of a set of labelled images."""
    return {"images": Spec(shape=shape), "labels": class_labels.Spec(classes=classes)}


def require(data: str, manifest: dict[str, Any], model: str, config: Any, sampling: Any) -> None:
    """Accept every set of images: models refuse shapes themselves."""
    del data, manifest, model, config, sampling


def examples(split: dict[str, Tensor], config: Any, seed: int) -> Rows:
    """Return the training examples of a split."""
    from pipeline.batches import Rows  # Lightning takes seconds to import, and preparing data does not need it

    del config, seed
    return Rows(split)


def check(name: str, images: Tensor, least: int = LEAST) -> None:
    """Refuse images that would give a plausible number for nonsense.

    Raises:
        ArtifactError: if the images are not uint8, with the range found; if their shape is not (N, 1 or 3, H, W), they
            are too few, all of one value, or without a value above 1.
    """
    if images.dtype != torch.uint8:
        broken = int((~images.isfinite()).sum()) if images.is_floating_point() else 0
        found = f"{images.dtype} in [{float(images.min()):.3g}, {float(images.max()):.3g}], {broken} not finite"
        msg = f"{name}: expected uint8 images in [0, 255], got {found}"
        raise ArtifactError(msg)
    if images.ndim != 4 or images.size(1) not in {1, 3}:
        msg = f"{name}: expected images (N, 1 or 3, H, W), got {tuple(images.shape)}"
        raise ArtifactError(msg)
    if len(images) < least:
        msg = f"{name}: {len(images)} images are too few, expected {least} or more"
        raise ArtifactError(msg)
    if images.min() == images.max():
        msg = f"{name}: every pixel of all {len(images)} images is {int(images.min())}"
        raise ArtifactError(msg)
    if images.max() <= 1:
        msg = f"{name}: expected images in [0, 255], got {len(images)} images without a value above 1"
        raise ArtifactError(msg)


def show(name: str, images: Tensor, loaded: Any) -> Exhibit:
    """Show uint8 images (N, C, H, W) as one PNG, a grid about as wide as high."""
    from torchvision.utils import make_grid, save_image

    del loaded
    grid = make_grid(images.float() / 255, nrow=math.ceil(math.sqrt(len(images))), padding=2, pad_value=0.5)
    buffer = io.BytesIO()
    save_image(grid, buffer, format="png")
    return Exhibit(name, ".png", buffer.getvalue())


def encode(loaded: Any, generator: torch.Generator, sampling: Any) -> str:
    """Draw one image for the served model: PNG as base64."""
    from torchvision.transforms.functional import to_pil_image

    del sampling
    buffer = io.BytesIO()
    to_pil_image(loaded.sample(1, generator)[0]).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def look(loaded: Any, held_out: dict[str, Tensor], manifest: dict[str, Any], seed: int, sampling: Any) -> Look:
    """Show 64 samples; measure how many are alike, and score validation images where the model has a likelihood."""
    del manifest, sampling
    model, images = loaded.model, held_out[loaded.model.makes]
    samples = loaded.sample(PREVIEW, make_generator(seed, "preview", device=model.device))
    apart = images[:: max(1, len(images) // PREVIEW)]  # a split may be sorted by class
    values = {"duplicate_share": duplicate_share(samples, apart)}
    if hasattr(model, "score"):
        scores = model.score(images, 1, make_generator(seed, "validate", device=model.device))
        values["validation_elbo_nats"] = float(scores["elbo"].mean())
        values["active_units"] = float(scores["active_units"])
    return Look([show("samples", samples, loaded)], values)


def find_alarms(newest: dict[str, tuple[int, float]], manifest: dict[str, Any]) -> list[str]:
    """Return a sentence for each value of the newest preview that means a collapse."""
    del manifest
    found = []
    if "duplicate_share" in newest and newest["duplicate_share"][1] > MOST_DUPLICATES:
        step, share = newest["duplicate_share"]
        found.append(f"step {step}: mode collapse: {share:.0%} of the samples are all but copies of another one")
    if "active_units" in newest and newest["active_units"][1] == 0:
        found.append(f"step {newest['active_units'][0]}: posterior collapse: no latent unit depends on the image")
    return found


def draw(loaded: Any, sampling: Any, seed: int, manifest: dict[str, Any], read: Callable[[str], Any]) -> Drawn:
    """Draw as many images as the test and training splits can be compared with, and score the test split.

    Files: generated (sets "0", "1", ... of uint8 (N, C, H, W)), and scores of a model with a likelihood.
    """
    model, splits = loaded.model, manifest["splits"]
    count = min(sampling.count, splits["test"]["count"], splits["train"]["count"])
    sets = draw_sets(loaded, seed, count, sampling.sets)
    drawn = Drawn({"generated": sets}, [show("samples", sets["0"][:GRID], loaded)])
    if not hasattr(model, "score"):
        return drawn
    images = read("test")[model.makes]
    # Every run is scored on the same binary images, on a GPU too.
    observed = model.observe(images, make_generator(0, "observe"))
    scores = model.score(observed, sampling.importance_samples, make_generator(seed, "score", device=model.device))
    named = {
        "elbo_nats": scores["elbo"],
        f"iw{sampling.importance_samples}_nats": scores["iw"],
        "kl_nats": scores["kl"],
        "active_units": scores["active_units"],
    }
    drawn.files["scores"] = {name: score.cpu() for name, score in named.items()}
    chosen = images[spread(len(images), GRID // 2)]
    pairs = torch.stack([chosen, model.reconstruct(chosen).cpu()], dim=1).flatten(0, 1)
    drawn.exhibits.append(show("reconstructions", pairs, loaded))
    return drawn


def spread(count: int, chosen: int) -> Tensor:
    """Return `chosen` indices below `count` at even distances, int64: a split may be sorted by class."""
    chosen = min(count, chosen)
    return torch.arange(chosen) * count // chosen
