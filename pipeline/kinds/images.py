"""Images: uint8 (N, C, H, W) with labels int64 (N,).

A source's `prepare` returns ImageSplits; the stage `prepare` calls `write`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from pipeline.kinds import (
    LEAST_ALIKE,
    MOST_DUPLICATES,
    TRAIN,
    Drawn,
    Exhibit,
    FieldSpec,
    Look,
    draw_one,
    draw_sets,
    dump_fields,
    duplicate_share,
    name_key,
    question_classes,
    question_examples,
    question_files,
)
from pipeline.kinds import labels as class_labels
from pipeline.params import Source
from pipeline.randomness import make_generator

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.batches import Rows

GRID = 100  # samples of a picture
PREVIEW = 64  # samples of a preview
LEAST = 50  # images that a metric is computed of
SURVEYED = 2000  # images whose values tell the range that a set uses
TAIL = 0.001  # share of the values at each end that may be outliers
NARROW = 128  # values; a set that uses fewer is too dark, too bright or too pale
LEAST_KL = 1.0  # nats an image that its codes tell; those of MNIST tell 24
ROWS, COLUMNS, THUMB, MARGIN = 20, 8, 128, 104  # of a contact sheet: classes, images of each, and pixels


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
    train_limit: int = Field(
        default=0,
        ge=0,
        exclude_if=lambda limit: not limit,
        description="training images that are kept, the first of a random order of `split_seed`; 0: all",
    )


@dataclass(frozen=True)
class ImageSplits:
    """Images uint8 (N, C, H, W), maybe memory-mapped, and labels int64 (N,) of each split; reports of the files.

    known: what the source found out about the set that the manifest should carry, such as its white.
    """

    splits: dict[str, tuple[Tensor, Tensor]]
    classes: int
    names: Sequence[str] = ()
    files: Sequence[FileReport] = ()
    known: Mapping[str, Any] = field(default_factory=dict)


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
    entries = {}
    known: dict[str, set[bytes]] = {}
    for name in (name for name in SPLITS if name in images.splits):
        pixels, labels = images.splits[name]
        if name == TRAIN and config.train_limit:
            order = torch.randperm(len(pixels), generator=make_generator(config.split_seed, "limit"))
            kept = order[: config.train_limit].sort().values
            pixels, labels = pixels[kept], labels[kept]
        if not len(pixels):
            counts = ", ".join(f"{split} {len(values)}" for split, (values, _) in images.splits.items())
            msg = f"data.{folder.name}.validation: every split needs an image, got {counts}; change the share"
            raise ArtifactError(msg)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or len(pixels) != len(labels):
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
    facts = dict(images.known) | find_narrow_range(images.splits["train"][0])
    about = {"known": facts} if facts else {}
    return {"fields": dump_fields(fields), "classes": list(images.names), "splits": entries, **about, **report}


def find_narrow_range(images: Tensor) -> dict[str, list[int]]:
    """Return the range of images uint8 (N, C, H, W), lowest and highest value without outliers, if it is narrow."""
    counts = torch.zeros(256, dtype=torch.int64)
    for index in spread(len(images), SURVEYED):  # one by one: the set may be larger than memory
        counts += torch.bincount(images[index].flatten(), minlength=256)
    shares = counts.double().cumsum(0) / counts.sum()
    low, high = int((shares <= TAIL).sum()), int((shares < 1 - TAIL).sum())
    return {"range": [low, high]} if high - low < NARROW else {}


def question_data(data: str, manifest: dict[str, Any], config: ImageConfig) -> list[str]:
    """Return a sentence for everything about a set that is perhaps not what the user meant, with the key to change."""
    known = manifest.get("known", {})
    white = name_key(data, config, "white")
    found = question_files(data, manifest, config)
    if "white" in known and getattr(config, "white", None) is None:
        use = f"use {known['bits']} of 16 bits" if known["bits"] > 1 else "are masks of 0 and 1"
        found.append(f"{white}: the pictures {use}, so {known['white']} is taken for white; a number here fixes it")
    if "background" in known and getattr(config, "background", None) is None:
        ink, ground = ("dark", "white") if known["background"] else ("bright", "black")
        background = name_key(data, config, "background")
        pictures = f"{known['transparent']} pictures are transparent in parts, and their ink is {ink}"
        found.append(f"{background}: {pictures}, so the ground behind it is {ground}; a number here fixes it")
    if "range" in known:
        low, high = known["range"]
        found.append(f"{white}: the images use only the values {low} to {high} of 0 to 255")
    if count := known.get("in_two_splits"):
        found.append(
            f"{name_key(data, config)}: {count} pictures of one split's folder are in another's too, and used there"
        )
    return [*found, *question_examples(data, manifest, config), *question_classes(data, manifest, config)]


def show_data(folder: Path, manifest: dict[str, Any]) -> Exhibit:
    """Show images of the training split: a row for each of the first 20 classes, or a square of all without classes."""
    from PIL import Image, ImageDraw

    split = artifacts.read_tensors(folder / "train.safetensors")
    images, labels = split["images"], split["labels"]
    classes = manifest["fields"]["labels"]["classes"]
    if classes == 1:
        return show("sheet", _pick_small(images, spread(len(images), PREVIEW)), None)
    names = manifest["classes"] or [str(label) for label in range(classes)]
    rows = []
    for label in range(min(classes, ROWS)):
        places = (labels == label).nonzero().flatten()
        rows.append(_lay_out(_pick_small(images, places[spread(len(places), COLUMNS)])))
    width, height = (max(row.size[side] for row in rows) for side in (0, 1))
    sheet = Image.new("RGB", (MARGIN + width, height * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        sheet.paste(row, (MARGIN, index * height))
        name = names[index].encode("unicode_escape").decode()  # the font has few letters
        draw.text((4, index * height + 4), name[:16], fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return Exhibit("sheet", ".png", buffer.getvalue())


def _pick_small(images: Tensor, indices: Tensor) -> Tensor:
    """Return the images of these indices, at most 128 pixels high; a white one if there is no index."""
    from torchvision.transforms.functional import resize

    if not len(indices):
        side = min(images.size(-1), THUMB)
        return images.new_full((1, images.size(1), side, side), 255)
    picked = (images[index] for index in indices)
    return torch.stack([resize(image, [THUMB, THUMB]) if image.size(-1) > THUMB else image for image in picked])


def _lay_out(images: Tensor) -> Image.Image:
    """Return uint8 images (N, C, H, W) in a row."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    return to_pil_image(make_grid(images, nrow=COLUMNS, padding=2, pad_value=128))


def make_fields(shape: tuple[int, int, int], classes: int) -> dict[str, FieldSpec]:
    """Return the fields of a set of labelled images."""
    return {"images": Spec(shape=shape), "labels": class_labels.Spec(classes=classes)}


def require_split(data: str, source: Source, split: str, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a prepared split that `check` would refuse, by what the manifest says of it.

    Raises:
        ArtifactError: with the key to change.
    """
    entry, total = splits[split], sum(each["count"] for each in splits.values())
    msg = ""
    if (count := entry["count"]) < LEAST:
        key = f"data.{data}"
        advice = f"bring {max(LEAST - count, math.ceil(LEAST * total / max(count, 1)) - total)} images more"
        if hasattr(source, "test") and total >= 4 * LEAST:  # else one split or another stays too small
            key, advice = f"data.{data}.test", f"{1.5 * LEAST / total:.2g} would do, or {advice}"
        msg = f"{key}: the {split} split has {count} of {total} images, metrics compare {LEAST} or more; {advice}"
    elif entry["minimum"] == entry["maximum"]:
        msg = f"data.{data}: every pixel of the {split} split is {entry['minimum']}, nothing can be learnt"
    elif entry["maximum"] <= 1:
        msg = f"data.{data}: expected images in [0, 255], the {split} split has no value above 1"
    elif entry["shape"][1] not in {1, 3}:
        msg = f"data.{data}: metrics compare images of 1 or 3 channels, the {split} split has {entry['shape'][1]}"
    if msg:
        raise ArtifactError(msg)


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


def to_file(name: str, image: Tensor, loaded: Any) -> Exhibit:
    """Return one image uint8 (C, H, W) as PNG."""
    from torchvision.transforms.functional import to_pil_image

    del loaded
    buffer = io.BytesIO()
    to_pil_image(image).save(buffer, "PNG")
    return Exhibit(name, ".png", buffer.getvalue())


def encode(loaded: Any, generator: torch.Generator, sampling: Any) -> str:
    """Draw one image for the served model: PNG as base64."""
    return base64.b64encode(to_file("", draw_one(loaded, generator, sampling), loaded).content).decode()


def look(loaded: Any, held_out: dict[str, Tensor], manifest: dict[str, Any], seed: int, sampling: Any) -> Look:
    """Show 64 samples; measure how many are alike, and score validation images where the model has a cheap score."""
    del manifest, sampling
    model, images = loaded.model, held_out[loaded.model.makes]
    samples = loaded.sample(PREVIEW, make_generator(seed, "preview", device=model.device))
    apart = images[spread(len(images), PREVIEW)]
    values = {"duplicate_share": duplicate_share(samples, apart)} if len(apart) >= LEAST_ALIKE else {}
    if hasattr(model, "score"):
        scores = model.score(images, 1, make_generator(seed, "validate", device=model.device), held_out)
        values["validation_elbo_nats"] = float(scores["elbo"].mean())
        values |= {name: float(score) for name, score in scores.items() if not score.ndim}  # of latents or codes
    if hasattr(model, "validate"):
        values |= model.validate(held_out, make_generator(seed, "validate", device=model.device))
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
    if "code_perplexity" in newest and "kl_nats" in newest and newest["kl_nats"][1] < LEAST_KL:
        step, nats = newest["kl_nats"]
        found.append(f"step {step}: posterior collapse: the codes of an image tell {nats:.2g} nats of it")
    return found


def find_silent_alarms(held_out: dict[str, Tensor], manifest: dict[str, Any]) -> list[str]:
    """Return a sentence if the validation images are too few to tell a collapse of either kind."""
    del manifest
    count = len(held_out["images"])
    few = f"no verdict on a collapse: {count} validation images are too few, {LEAST_ALIKE} are needed"
    return [] if count >= LEAST_ALIKE else [few]


def draw(loaded: Any, sampling: Any, seed: int, manifest: dict[str, Any], read: Callable[[str], Any]) -> Drawn:
    """Draw as many images as the test and training splits can be compared with, and score the test split.

    Files: generated (sets "0", "1", ... of uint8 (N, C, H, W)), what they were given, and scores of a model with a
    likelihood.
    """
    model, splits = loaded.model, manifest["splits"]
    count = min(sampling.count, splits["test"]["count"], splits["train"]["count"])
    files = draw_sets(loaded, seed, count, sampling.sets)
    shown = files["generated"]["0"][:GRID]
    if "given_labels" in files:  # class by class
        shown = shown[files["given_labels"]["0"][:GRID].argsort(stable=True)]
    drawn = Drawn(files, [show("samples", shown, loaded)])
    if hasattr(model, "score_levels"):
        drawn.files["scores"] = _score_levels(model, sampling, seed, read("test"))
    if hasattr(model, "complete"):
        drawn.exhibits.append(_show_completed(loaded, seed, read("test")))
    if not hasattr(model, "score"):
        return drawn
    held_out = read("test")
    images = held_out[model.makes]
    # Every run is scored on the same binary images, on a GPU too.
    observed = model.observe(images, make_generator(0, "observe"))
    generator = make_generator(seed, "score", device=model.device)
    scores = model.score(observed, sampling.importance_samples, generator, held_out)
    names = {"elbo": "elbo_nats", "iw": f"iw{sampling.importance_samples}_nats", "kl": "kl_nats"}
    drawn.files["scores"] = {names.get(name, name): score.cpu() for name, score in scores.items()}
    if "bits_per_dim" in scores:
        drawn.files["scores"]["bits_per_dim"] = scores["bits_per_dim"][spread(len(images), sampling.bits_images)].cpu()
    if hasattr(model, "reconstruct"):
        rows = spread(len(images), GRID // 2)
        again = model.reconstruct(images[rows], {name: held_out[name][rows] for name in model.given})
        pairs = torch.stack([images[rows], again.cpu()], dim=1).flatten(0, 1)
        drawn.exhibits.append(show("reconstructions", pairs, loaded))
    return drawn


def _show_completed(loaded: Any, seed: int, held_out: dict[str, Tensor]) -> Exhibit:
    """Let a model complete some of a split's images, each given its class if the model is."""
    images = held_out[loaded.model.makes]
    rows = spread(len(images), GRID // 2)
    given = {name: held_out[name][rows] for name in loaded.model.given}
    generator = make_generator(seed, "complete", device=loaded.model.device)
    completed = complete(loaded, images[rows], generator, given)
    return show_completions("completions", images[rows], completed, loaded)


def read_files(path: Path, loaded: Any, section: Mapping[str, Any]) -> tuple[list[str], Tensor]:
    """Read a picture, or those of a folder, as the images of a model: their names, and uint8 (N, C, H, W).

    Pictures of any size and format become images as in the source image_folder.

    Args:
        path: of a picture, or of a folder with pictures.
        loaded: the model.
        section: of the data that it has learnt, whose keys say how a picture becomes an image.

    Raises:
        ArtifactError: if there is no picture, if one cannot be read, or if the images are not square.
    """
    from pipeline.formats.own_files import list_files
    from pipeline.formats.pictures import ENDINGS, Look, read_settled

    channels, height, width = loaded.fields[loaded.model.makes].shape
    if height != width:
        msg = f"{path}: pictures are made square, and the images of this model are {height}x{width}"
        raise ArtifactError(msg)
    files = [(path.name, path)]
    if path.is_dir():
        endings = set().union(*ENDINGS.values())
        files = [(name, file) for name, file in list_files(path) if file.suffix.lower() in endings]
    if not files:
        msg = f"{path}: expected pictures, found none"
        raise ArtifactError(msg)
    chosen = {key: value for key, value in section.items() if key in Look.model_fields}
    look = Look.model_validate(chosen | {"size": height, "channels": channels})
    images = read_settled([file for _, file in files], look)
    return [name for name, _ in files], torch.from_numpy(np.stack(images))


def find_half(images: Tensor) -> int:
    """Return how many rows are the upper half of images (N, C, H, W), an even number."""
    return images.size(2) // 4 * 2


def complete(loaded: Any, images: Tensor, generator: torch.Generator, given: Mapping[str, Tensor]) -> Tensor:
    """Return uint8 images (N, C, H, W), on the CPU, whose upper half is kept and whose lower half the model draws."""
    completed: Tensor = loaded.model.complete(images, find_half(images), generator, given)
    return completed.cpu()


def show_completions(name: str, images: Tensor, completed: Tensor, loaded: Any) -> Exhibit:
    """Show the upper half of each image, its completion and the image itself in a row, with thin lines between."""
    upper, line = images.clone(), torch.full_like(images[:, :, :, :1], 128)
    upper[:, :, find_half(images) :] = 128
    return show(name, torch.cat([upper, line, completed, line, images], dim=3), loaded)


def _score_levels(model: Any, sampling: Any, seed: int, held_out: dict[str, Tensor]) -> dict[str, Tensor]:
    """Score some of a split's images with a model whose likelihood is too dear for all of them."""
    rows = spread(len(held_out[model.makes]), sampling.bits_images)
    generator = make_generator(seed, "score", device=model.device)
    given = {name: held_out[name][rows] for name in model.given}
    scores = model.score_levels(held_out[model.makes][rows], generator, given)
    return {name: score.cpu() for name, score in scores.items()}


def spread(count: int, chosen: int) -> Tensor:
    """Return `chosen` indices below `count` at even distances, int64: a split may be sorted by class."""
    chosen = min(count, chosen)
    return torch.arange(chosen) * count // chosen
