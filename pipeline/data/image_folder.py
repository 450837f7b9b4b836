"""image_folder: a folder of your own pictures, of any size and format; its subfolders are the classes.

    dvc exp run -S data.images.source=image_folder -S data.images.path=pictures

`fetch` lists every file with its SHA-256, `prepare` decodes exactly what is listed; the pictures stay where they are.
Folders that hold everything are entered. Folders named train, validation and test are the splits, and the next folders
are the classes; `folders` says otherwise. Pictures without class folders are one class. Where no folder says the split,
it is a function only of `split_seed` and of the picture's pixels as the set holds them: a new picture moves no other,
and no two splits share one. Of pictures with equal pixels the first is used, those of test and validation folders
before those of train, whatever their format; files.json names the others, and the reason of each file that is not used.

Which value is white, and which ground is behind transparent pixels, is decided by the whole set: see Survey.
"""

import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.artifacts import SPLITS, ArtifactError
from pipeline.formats.folders import Folders, Layout, Place, is_litter, name_other, read_layout
from pipeline.formats.own_files import (
    FileReport,
    examine,
    list_files,
    map_in_threads,
    open_file,
    read_reports,
    refuse_if_broken,
    write_reports,
)
from pipeline.formats.pictures import ENDINGS, WHITE, Look, Picture, Survey, decode
from pipeline.kinds import FieldSpec
from pipeline.kinds.images import LEAST, ImageConfig, ImageSplits, make_fields
from pipeline.randomness import derive_seed

HELD_OUT = ("test", "validation")
RANKS = {name: rank for rank, name in enumerate([*HELD_OUT, "train", ""])}  # of two equal pictures the first is used
PICTURES = set().union(*ENDINGS.values())
STRAY = "next to class folders: its class is not known; `folders: none` takes all pictures without classes"
LOOKED_AT = 30  # pictures by which `suggest` judges a folder
SIDES = (32, 28, 24, 16, 8)  # of the images that it suggests, of which every model can learn
ENOUGH = 500  # pictures to compare, so that distances are worth measuring
SHAPED_BY = ("size", "channels")


class Config(ImageConfig, Look):
    """How the pictures become images, and how they are split."""

    READS_PATH: ClassVar = True

    source: Literal["image_folder"]
    folders: Folders = Field(
        "auto", description="what they mean: splits and classes (auto), only classes, only splits, or none of them"
    )
    test: float = Field(0.1, gt=0, lt=1, description="share of the images in the test split, without a folder of it")
    max_broken: float = Field(0.01, ge=0, lt=1, description="share of the files that may be broken")


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the fields of the images; there may be two classes, until they are counted, unless no folder names one."""
    folders = not Path(config.path).is_dir() or any(path.is_dir() for path in Path(config.path).glob("[!.]*"))
    classes = 2 if folders and config.folders in {"auto", "classes"} else 1
    return make_fields((config.channels, config.size, config.size), classes)


def suggest(path: Path) -> tuple[int, dict[str, Any], str] | None:
    """Return for the pictures of a folder their number, keys of a section, and what was seen; None without any.

    The pictures stay small, so that two cores can learn them. The share of the test is one tenth, or what leaves ENOUGH
    pictures in it if that is a quarter at most, or else the LEAST that metrics compare.
    """
    if not path.is_dir():
        return None
    files = [(name, file) for name, file in list_files(path) if Path(name).suffix.lower() in PICTURES]
    seen = []
    for name, file in files[:: len(files) // LOOKED_AT + 1]:
        with suppress(OSError), open_file(file) as opened:
            seen.append(decode(opened, name, Look(size=8)))
    pixels = [picture.pixels for picture in seen if picture.pixels is not None]
    if not pixels:
        return None
    sides = sorted(min(map(int, picture.mode.split()[1].split("x"))) for picture in seen if picture.pixels is not None)
    size = next((side for side in SIDES if side <= sides[len(sides) // 2]), SIDES[-1])
    is_grey = all((each == each[:1]).all() for each in pixels)
    shares = [round(1.2 * ENOUGH / len(files), 2), round(1.5 * LEAST / len(files), 2)]  # the split is drawn
    test = max(0.1, shares[0] if shares[0] <= 0.25 else min(shares[1], 0.4))
    keys = {"split_seed": 0, "validation": 0.1, "test": test, "size": size, "channels": 1 if is_grey else 3}
    colour = "grey" if is_grey else "in colour"
    return len(files), keys, f"{len(files)} pictures, {colour}, about {sides[len(sides) // 2]} pixels high or wide"


def fetch(folder: Path, config: Config) -> None:
    """List every folder below `config.path`, and every file with its size and SHA-256, in files.json.

    Raises:
        ArtifactError: if `config.path` is not a folder, or has no file, or a folder below it cannot be read.
    """
    root = Path(config.path)
    found = [(name, path) for name, path in list_files(root) if not name.endswith(".dvc")]  # of `dvc add`
    if not found:
        msg = f"{root}: no file found"
        raise ArtifactError(msg)
    reports = map_in_threads(lambda file: examine(root, *file), found, total=len(found), description="list pictures")
    write_reports(folder, [*(FileReport(name, 0, "") for name in list_folders(root)), *reports])


def list_folders(root: Path) -> list[str]:
    """Return the relative path of every folder below `root` that is neither hidden nor a link, with / at its end."""
    found = []
    for parent, folders, _ in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent) / name for name in folders)
        found += [f"{path.relative_to(root).as_posix()}/" for path in paths if not path.is_symlink()]
    return sorted(found, key=os.fsencode)


def prepare(raw: Path, config: Config) -> ImageSplits:
    """Decode the listed pictures into memory-mapped images (N, C, size, size) of each split, in the listing's order.

    Raises:
        ArtifactError: if a file is not the listed one, too many are broken, or a split would be empty.
    """
    root = Path(config.path)
    listed = read_reports(raw)
    files = [report for report in listed if not report.path.endswith("/")]
    layout, judged = _judge_places(root, files, config)
    places = {report.path: layout.place(report.path) for report in files}
    judged.sort(key=lambda report: RANKS[places[report.path].split])
    with ExitStack() as stack:
        # Nameless temporary files in the folder of the raw ones: none is left, however the stage ends.
        stores = {name: stack.enter_context(tempfile.TemporaryFile(dir=raw.parent)) for name in SPLITS}
        decoded, digests, known = _decode_settled(root, judged, config, stores, places)
        reports = _quarantine_contradictions(decoded, digests, places)
        refuse_if_broken(root, reports, config.max_broken, raw.name)
        _refuse_empty(root, reports, config)
        images, classes = {}, {}
        for name in SPLITS:
            rows = [after for before, after in zip(decoded, reports, strict=True) if before.split == name]
            images[name] = _map_pixels(stores[name], [not row.reason for row in rows], config)
            classes[name] = [places[row.path].group for row in rows if not row.reason]
    names = sorted(set().union(*classes.values()), key=os.fsencode)
    label = {name: index for index, name in enumerate(names)}
    splits = {name: (images[name], torch.tensor([label[each] for each in classes[name]])) for name in SPLITS}
    empty = _report_empty([report for report in listed if report.path.endswith("/")], layout, names)
    reports = [*sorted(reports, key=lambda report: os.fsencode(report.path)), *empty]
    known |= describe_layout(layout, config) | _count_moved(reports, places)
    return ImageSplits(splits, len(names), [name for name in names if name], reports, known)


def find_layout(root: Path, likely: Sequence[str], config: Config) -> Layout:
    """Return what the folders above the files mean that are likely pictures.

    Raises:
        ArtifactError: if there are no split folders, though the config says so.
    """
    layout = read_layout(likely, config.folders)
    if config.folders == "splits" and layout.level is None:
        names = ", ".join(sorted({path.split("/")[0] for path in likely if "/" in path})[:10]) or "no folders"
        msg = f"{root}: `folders: splits` expects folders named train and validation or test, found {names}"
        raise ArtifactError(msg)
    return layout


def describe_layout(layout: Layout, config: Config) -> dict[str, Any]:
    """Return what the manifest says of the folders, where they are more than classes."""
    known: dict[str, Any] = {"wrapper": "/".join(layout.wrapper)} if layout.wrapper else {}
    if layout.level is not None:
        shares = {name: f"a share of {share:g} of train" for name, share in _list_shares(config)}
        folders = {name: ", ".join(f"{folder}/" for folder in layout.splits.get(name, ())) for name in SPLITS}
        known["splits"] = {name: folder or shares[name] for name, folder in folders.items()}
    return known


def choose_split(digest: str, config: Config, folder: str = "", folders: Collection[str] = ()) -> str:
    """Return the split of the pixels with this SHA-256: that of its folder, or a share of those that have none.

    `test` is a share of all, then `validation` of the rest. Where folders are splits, the shares are of the folder
    train, and only of splits that have no folder.

    Args:
        digest: of the pixels.
        config: the shares, and the seed.
        folder: the split that the picture's folder says, if any.
        folders: all splits that have a folder.
    """
    if folder in HELD_OUT:
        return folder
    for name, share in _list_shares(config):
        if name not in folders and derive_seed(config.split_seed, name, digest) < share * 2**63:
            return name
    return "train"


def _list_shares(config: Config) -> list[tuple[str, float]]:
    return [("test", config.test), ("validation", config.validation)]


def _judge_places(root: Path, files: Sequence[FileReport], config: Config) -> tuple[Layout, list[FileReport]]:
    """Return what the folders mean, and the files, with a reason if their place says that they cannot be used."""
    usable = [report.path for report in files if not report.reason and not is_litter(report.path)]
    likely = [path for path in usable if Path(path).suffix.lower() in PICTURES] or usable
    layout = find_layout(root, likely, config)
    mixed = len({bool(layout.place(path).group) for path in likely}) == 2

    def judge(report: FileReport) -> FileReport:
        place = layout.place(report.path)
        reason = report.reason or ("litter" if is_litter(report.path) else place.reason)
        return replace(report, reason=reason or (STRAY if mixed and not place.group else ""))

    return layout, [judge(report) for report in files]


def _decode_settled(
    root: Path,
    judged: Sequence[FileReport],
    config: Config,
    stores: Mapping[str, IO[bytes]],
    places: Mapping[str, Place],
) -> tuple[list[FileReport], list[str], dict[str, Any]]:
    """Decode all pictures until the set's own white and ground are used; return them too, where they matter."""
    look = Survey().settle(config)
    while True:
        survey = Survey()
        reports, digests = _decode_all(root, judged, look, stores, places, survey)
        settled = survey.settle(config)
        if settled == look:
            break
        look = settled
        for store in stores.values():
            store.seek(0)
            store.truncate()
    known: dict[str, Any] = {"white": look.white, "bits": survey.highest.bit_length()} if look.white != WHITE else {}
    known |= {"transparent": survey.transparent, "background": look.background} if survey.transparent else {}
    return _name_others(reports), digests, known


def _name_others(reports: Sequence[FileReport]) -> list[FileReport]:
    """Tell the broken files that were never pictures from those that should have been."""
    pictures = {report.path for report in reports if not report.reason}
    pictures |= {path.rpartition(".")[0] for path in pictures}
    named = []
    for report in reports:
        other = name_other(report.path, pictures) if report.reason else ""
        named.append(replace(report, reason="", other=other) if other else report)
    return named


def _decode_all(
    root: Path,
    judged: Sequence[FileReport],
    config: Config,
    stores: Mapping[str, IO[bytes]],
    places: Mapping[str, Place],
    survey: Survey,
) -> tuple[list[FileReport], list[str]]:
    """Append the pixels of each new picture to its split's file; return reports and SHA-256 of pixels, file by file."""
    reports, digests = [], []
    first: dict[str, str] = {}
    folders = {place.split for place in places.values()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        work = partial(_decode_listed, root, config)
        pictures = map_in_threads(work, judged, total=len(judged), description="decode pictures")
        for listed, picture in zip(judged, pictures, strict=True):
            report, digest = listed, ""
            if picture is not None:
                survey.add(picture)
                report = replace(listed, mode=picture.mode, note=picture.note, reason=picture.reason)
            if picture is not None and picture.pixels is not None:
                pixels = picture.pixels.tobytes()
                digest = sha256(pixels).hexdigest()
                used = first.setdefault(digest, report.path)
                if used == report.path:
                    split = choose_split(digest, config, places[report.path].split, folders)
                    report = replace(report, split=split)
                    stores[split].write(pixels)
                else:
                    report = replace(report, duplicate_of=used)
            reports.append(report)
            digests.append(digest)
    return reports, digests


def _quarantine_contradictions(
    reports: Sequence[FileReport], digests: Sequence[str], places: Mapping[str, Place]
) -> list[FileReport]:
    """Give every file of a picture that several classes claim a reason."""
    classes: dict[str, set[str]] = defaultdict(set)
    for report, digest in zip(reports, digests, strict=True):
        classes[digest].add(places[report.path].group)

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


def _report_empty(folders: Sequence[FileReport], layout: Layout, names: Sequence[str]) -> list[FileReport]:
    """Report the class folders without a usable picture in any split, and say so."""
    classes = [report.path for report in folders if layout.is_class_folder(report.path) and not is_litter(report.path)]
    empty = [folder for folder in classes if layout.place(folder).group not in names]
    for folder in empty:
        print(f"class folder {folder!r} has no picture that can be used: it is no class")
    return [FileReport(folder, 0, "", note="no picture that can be used: no class") for folder in empty]


def _count_moved(reports: Sequence[FileReport], places: Mapping[str, Place]) -> dict[str, int]:
    """Count the pictures that are in the folders of two splits, and used in one."""
    pairs = [(report.path, report.duplicate_of) for report in reports if report.duplicate_of]
    moved = sum(places[path].split != places[used].split for path, used in pairs)
    return {"in_two_splits": moved} if moved else {}
