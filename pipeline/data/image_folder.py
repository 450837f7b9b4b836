"""image_folder: a folder of your own pictures, of any size and format; its subfolders are the classes.

    dvc exp run -S data.images.source=image_folder -S data.images.path=pictures

`fetch` lists every file with its SHA-256, `prepare` decodes exactly what is listed; the pictures stay where they are.
The first folder of a path is the class; pictures right in the folder, without subfolders, are one class. The split of
a picture is a function only of `split_seed` and of its pixels as the set holds them: a new picture moves no other,
and no two splits share one. Of pictures with equal pixels the first is used, whatever their format; files.json names
the others, and the reason of each file that is not used.
"""

import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import IO, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.artifacts import SPLITS, ArtifactError
from pipeline.kinds.images import ImageConfig, ImageSplits
from pipeline.formats.own_files import FileReport, examine, list_files, map_in_threads, open_file, read_reports, refuse_if_broken, write_reports
from pipeline.formats.pictures import Look, Picture, decode
from pipeline.randomness import derive_seed


class Config(ImageConfig, Look):
    """How the pictures become images, and how they are split."""

    READS_PATH: ClassVar = True

    source: Literal["image_folder"]
    test: float = Field(0.1, gt=0, lt=1, description="share of the images in the test split")
    max_broken: float = Field(0.01, ge=0, lt=1, description="share of the files that may be broken")


def fetch(folder: Path, config: Config) -> None:
    """List the class folders, and every file below `config.path` with its size and SHA-256, in files.json.

    Raises:
        ArtifactError: if `config.path` is not a folder, or has no file, or a folder below it cannot be read.
    """
    root = Path(config.path)
    found = [(name, path) for name, path in list_files(root) if not name.endswith(".dvc")]  # of `dvc add`
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
    judged = _quarantine_strays([report for report in listed if not report.path.endswith("/")])
    with ExitStack() as stack:
        # Nameless temporary files in the folder of the raw ones: none is left, however the stage ends.
        stores = {name: stack.enter_context(tempfile.TemporaryFile(dir=raw.parent)) for name in SPLITS}
        decoded, digests = _decode_all(root, judged, config, stores)
        reports = _quarantine_contradictions(decoded, digests)
        refuse_if_broken(root, reports, config.max_broken, raw.name)
        _refuse_empty(root, reports, config)
        images, classes = {}, {}
        for name in SPLITS:
            rows = [after for before, after in zip(decoded, reports, strict=True) if before.split == name]
            images[name] = _map_pixels(stores[name], [not row.reason for row in rows], config)
            classes[name] = [_name_class(row.path) for row in rows if not row.reason]
    names = sorted(set().union(*classes.values()), key=os.fsencode)
    label = {name: index for index, name in enumerate(names)}
    splits = {name: (images[name], torch.tensor([label[each] for each in classes[name]])) for name in SPLITS}
    empty = _report_empty([report.path for report in listed if report.path.endswith("/")], names)
    return ImageSplits(splits, classes=len(names), names=[name for name in names if name], files=[*reports, *empty])


def choose_split(digest: str, config: Config) -> str:
    """Return the split of the pixels with this SHA-256: `test` of all, then `validation` of the rest."""
    for name, share in (("test", config.test), ("validation", config.validation)):
        if derive_seed(config.split_seed, name, digest) < share * 2**63:
            return name
    return "train"


def _name_class(path: str) -> str:
    """Return the first folder of a path, or nothing for a file right in the root."""
    folder, slash, _ = path.partition("/")
    return folder if slash else ""


def _quarantine_strays(listed: Sequence[FileReport]) -> list[FileReport]:
    """Quarantine pictures next to class folders."""
    mixed = len({bool(_name_class(report.path)) for report in listed if not report.reason}) == 2
    reason = "beside class folders: its class is not known"
    return [
        replace(report, reason=reason) if mixed and not report.reason and not _name_class(report.path) else report
        for report in listed
    ]


def _decode_all(
    root: Path, judged: Sequence[FileReport], config: Config, stores: Mapping[str, IO[bytes]]
) -> tuple[list[FileReport], list[str]]:
    """Append the pixels of each new picture to its split's file; return reports and SHA-256 of pixels, file by file."""
    reports, digests = [], []
    first: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        work = partial(_decode_listed, root, config)
        pictures = map_in_threads(work, judged, total=len(judged), description="decode pictures")
        for listed, picture in zip(judged, pictures, strict=True):
            report, digest = listed, ""
            if picture is not None:
                report = replace(listed, mode=picture.mode, note=picture.note, reason=picture.reason)
            if picture is not None and picture.pixels is not None:
                pixels = picture.pixels.tobytes()
                digest = sha256(pixels).hexdigest()
                used = first.setdefault(digest, report.path)
                if used == report.path:
                    report = replace(report, split=choose_split(digest, config))
                    stores[report.split].write(pixels)
                else:
                    report = replace(report, duplicate_of=used)
            reports.append(report)
            digests.append(digest)
    return reports, digests


def _quarantine_contradictions(reports: Sequence[FileReport], digests: Sequence[str]) -> list[FileReport]:
    """Give every file of a picture that several classes claim a reason."""
    classes: dict[str, set[str]] = defaultdict(set)
    for report, digest in zip(reports, digests, strict=True):
        classes[digest].add(_name_class(report.path))

    def judge(report: FileReport, digest: str) -> FileReport:
        if not digest or len(classes[digest]) == 1:
            return report
        names = ", ".join(map(repr, sorted(classes[digest], key=os.fsencode)))
        return replace(report, reason=f"the same picture is in the classes {names}", duplicate_of="", split="")

    return [judge(report, digest) for report, digest in zip(reports, digests, strict=True)]


def _decode_listed(root: Path, config: Config, report: FileReport) -> Picture | None:
    """Decode a file that is to be used, if it is the listed one."""
    if not report.sha256:
        return None
    try:
        with open_file(root / report.path) as file:
            found = file_digest(file, "sha256").hexdigest()
            if found == report.sha256:
                return None if report.reason else decode(file, report.path, config)
    except OSError as error:
        found = str(error.strerror)
    msg = (
        f"{root}: {report.path!r} changed after it was listed: expected SHA-256 {report.sha256}, found {found}; "
        "run `dvc repro`, which lists the folder again"
    )
    raise ArtifactError(msg)


def _refuse_empty(root: Path, reports: Sequence[FileReport], config: Config) -> None:
    counts = {name: sum(report.split == name for report in reports) for name in SPLITS}
    if not all(counts.values()):
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        msg = (
            f"{root}: every split needs a picture, got {found} by test {config.test:g}, "
            f"validation {config.validation:g}, split_seed {config.split_seed}; "
            "add pictures, raise the share of the empty split, or change split_seed"
        )
        raise ArtifactError(msg)


def _map_pixels(store: IO[bytes], kept: Sequence[bool], config: Config) -> Tensor:
    """Map a file of pictures as a tensor, without those that are not kept; it lives on when the file is closed."""
    store.flush()
    shape = (len(kept), config.channels, config.size, config.size)
    pixels = np.memmap(store, dtype=np.uint8, mode="r+", shape=shape)
    rows = [row for row, keep in enumerate(kept) if keep]
    for place, row in enumerate(rows):
        if place != row:
            pixels[place] = pixels[row]
    return torch.from_numpy(pixels[: len(rows)])


def _report_empty(folders: Sequence[str], names: Sequence[str]) -> list[FileReport]:
    """Report the class folders without a usable picture, and say so."""
    empty = [folder for folder in folders if folder.removesuffix("/") not in names]
    for folder in empty:
        print(f"class folder {folder!r} has no picture that can be used: it is no class")
    return [FileReport(folder, 0, "", note="no picture that can be used: no class") for folder in empty]
