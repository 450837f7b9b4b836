"""image_folder: a folder of one's own pictures, of any sizes and formats; its subfolders are the classes.

    dvc exp run -S data.images.source=image_folder -S data.images.path=pictures

`fetch` lists every file with its SHA-256, `prepare` decodes exactly what is listed; the pictures stay where they are.
The first folder of a path is the class; pictures right in the folder, without subfolders, are one class. The split of
a picture is a function of its content and `split_seed` alone: a further picture moves no other. Of equal files the
first is used; files.json names the others, and the reason of each file that is not used.
"""

import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.artifacts import SPLITS, ArtifactError
from pipeline.data.image_sets import ImageConfig, ImageSplits
from pipeline.data.own_files import (
    FileReport,
    examine,
    list_files,
    map_in_threads,
    open_file,
    read_reports,
    refuse_if_broken,
    write_reports,
)
from pipeline.data.pictures import Look, Picture, decode
from pipeline.randomness import derive_seed


class Config(ImageConfig, Look):
    """How the pictures become images, and how they are split."""

    source: Literal["image_folder"]
    test: float = Field(0.1, gt=0, lt=1, description="share of the images in the test split")
    max_broken: float = Field(0.01, ge=0, lt=1, description="share of the files that may be broken")


def fetch(folder: Path, config: Config) -> None:
    """List the class folders, and every file below `config.path` with its size and SHA-256, in files.json.

    Raises:
        ArtifactError: if `config.path` is not a folder, or has no file, or a folder below it cannot be read.
    """
    root = Path(config.path)
    found = list(list_files(root))
    if not found:
        msg = f"{root}: no file found"
        raise ArtifactError(msg)
    names = [entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    visible = sorted((name for name in names if not name.startswith(".")), key=os.fsencode)
    reports = map_in_threads(lambda file: examine(root, *file), found, total=len(found), description="list pictures")
    write_reports(folder, [*(FileReport(f"{name}/", 0, "") for name in visible), *reports])


def prepare(raw: Path, config: Config) -> ImageSplits:
    """Decode the listed pictures into memory-mapped images (N, C, size, size) of each split, in the listing's order.

    Raises:
        ArtifactError: if a file is not the listed one, too many are broken, or a split would be empty.
    """
    root = Path(config.path)
    listed = read_reports(raw)
    judged = _judge([report for report in listed if not report.path.endswith("/")])
    with ExitStack() as stack:
        # Nameless files beside the raw ones: nothing is left of them, however the stage ends.
        stores = {name: stack.enter_context(tempfile.TemporaryFile(dir=raw.parent)) for name in SPLITS}
        reports, classes = _decode_all(root, judged, config, stores)
        refuse_if_broken(root, reports, config.max_broken)
        _refuse_empty(root, classes, config)
        shape = (config.channels, config.size, config.size)
        images = {name: _map_pixels(stores[name], (len(classes[name]), *shape)) for name in SPLITS}
    names = sorted(set().union(*classes.values()), key=os.fsencode)
    label = {name: index for index, name in enumerate(names)}
    splits = {name: (images[name], torch.tensor([label[each] for each in classes[name]])) for name in SPLITS}
    empty = _report_empty([report.path for report in listed if report.path.endswith("/")], names)
    return ImageSplits(splits, classes=len(names), names=[name for name in names if name], files=[*reports, *empty])


def choose_split(sha256: str, config: Config) -> str:
    """Return the split of the picture with this SHA-256: `test` of all, then `validation` of the others."""
    for name, share in (("test", config.test), ("validation", config.validation)):
        if derive_seed(config.split_seed, name, sha256) < share * 2**63:
            return name
    return "train"


def _name_class(path: str) -> str:
    """Return the first folder of a path, or nothing for a file right in the root."""
    folder, slash, _ = path.partition("/")
    return folder if slash else ""


def _judge(listed: Sequence[FileReport]) -> list[FileReport]:
    """Quarantine pictures beside class folders; of the files of one content, keep the first."""
    mixed = len({bool(_name_class(report.path)) for report in listed if not report.reason}) == 2
    judged = []
    first: dict[str, str] = {}
    for report in listed:
        if report.reason:
            judged.append(report)
        elif mixed and not _name_class(report.path):
            judged.append(replace(report, reason="beside class folders: its class is not known"))
        else:
            used = first.setdefault(report.sha256, report.path)
            judged.append(replace(report, duplicate_of="" if used == report.path else used))
    return judged


def _find_contradictions(judged: Sequence[FileReport]) -> dict[str, str]:
    """Return SHA-256 and reason of each content that several classes claim."""
    classes: dict[str, set[str]] = defaultdict(set)
    for report in judged:
        if not report.reason:
            classes[report.sha256].add(_name_class(report.path))
    return {
        sha256: f"the same file is in the classes {', '.join(map(repr, sorted(names, key=os.fsencode)))}"
        for sha256, names in classes.items()
        if len(names) > 1
    }


def _decode_all(
    root: Path, judged: Sequence[FileReport], config: Config, stores: Mapping[str, IO[bytes]]
) -> tuple[list[FileReport], dict[str, list[str]]]:
    """Append the pixels of each picture to its split's file; return the files' reports and each split's class names."""
    reports = []
    classes: dict[str, list[str]] = {name: [] for name in stores}
    contradictions = _find_contradictions(judged)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        work = partial(_decode_listed, root, config)
        pictures = map_in_threads(work, judged, total=len(judged), description="decode pictures")
        for report, picture in zip(judged, pictures, strict=True):
            if picture is None:
                reports.append(report)
                continue
            reason = picture.reason or contradictions.get(report.sha256, "")
            reports.append(replace(report, mode=picture.mode, note=picture.note, reason=reason))
            if picture.pixels is not None and not reason:
                split = choose_split(report.sha256, config)
                stores[split].write(picture.pixels.tobytes())
                classes[split].append(_name_class(report.path))
    return _complete(reports), classes


def _decode_listed(root: Path, config: Config, report: FileReport) -> Picture | None:
    """Decode a file that is to be used, if it is the listed one."""
    if not report.sha256:
        return None
    try:
        with open_file(root / report.path) as file:
            found = file_digest(file, "sha256").hexdigest()
            if found == report.sha256:
                return None if report.reason or report.duplicate_of else decode(file, report.path, config)
    except OSError as error:
        found = str(error.strerror)
    msg = (
        f"{root}: {report.path!r} changed after it was listed: expected SHA-256 {report.sha256}, found {found}; "
        "run `dvc repro`, which lists the folder again"
    )
    raise ArtifactError(msg)


def _complete(reports: Sequence[FileReport]) -> list[FileReport]:
    """Give the duplicates of a broken file its reason, those of a used one its mode."""
    first = {report.path: report for report in reports}
    complete = []
    for report in reports:
        if used := first.get(report.duplicate_of):
            name = "" if used.reason else report.duplicate_of
            complete.append(replace(report, mode=used.mode, reason=used.reason, duplicate_of=name))
        else:
            complete.append(report)
    return complete


def _refuse_empty(root: Path, classes: dict[str, list[str]], config: Config) -> None:
    counts = {name: len(labels) for name, labels in classes.items()}
    if not all(counts.values()):
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        msg = (
            f"{root}: every split needs a picture, got {found} by test {config.test:g}, "
            f"validation {config.validation:g}, split_seed {config.split_seed}; "
            "add pictures, raise the share of the empty split, or change split_seed"
        )
        raise ArtifactError(msg)


def _map_pixels(store: IO[bytes], shape: tuple[int, ...]) -> Tensor:
    """Map a file of uint8 values as a tensor; it lives as long as the tensor, even when the file is closed."""
    store.flush()
    return torch.from_numpy(np.memmap(store, dtype=np.uint8, mode="r+", shape=shape))


def _report_empty(folders: Sequence[str], names: Sequence[str]) -> list[FileReport]:
    """Report the class folders without a usable picture, and say so."""
    empty = [folder for folder in folders if folder.removesuffix("/") not in names]
    for folder in empty:
        print(f"class folder {folder!r} has no picture that can be used: it is no class")
    return [FileReport(folder, 0, "", note="no picture that can be used: no class") for folder in empty]
