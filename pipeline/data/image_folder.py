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

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.artifacts import SPLITS
from pipeline.formats.folders import Folders
from pipeline.formats.own_files import FileReport, list_files, open_file
from pipeline.formats.own_folders import OwnFolder, Sorting, list_folder, may_have_classes
from pipeline.formats.pictures import ENDINGS, WHITE, Look, Survey, decode
from pipeline.kinds import FieldSpec
from pipeline.kinds.images import LEAST, ImageConfig, ImageSplits, make_fields

PICTURES = set().union(*ENDINGS.values())
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
    classes = 2 if may_have_classes(config) else 1
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
    list_folder(folder, config.path, "list pictures")


def prepare(raw: Path, config: Config) -> ImageSplits:
    """Decode the listed pictures into memory-mapped images (N, C, size, size) of each split, in the listing's order.

    Raises:
        ArtifactError: if a file is not the listed one, too many are broken, or a split would be empty.
    """
    own = OwnFolder(raw, config, PICTURES, "picture")
    with ExitStack() as stack:
        # Nameless temporary files in the folder of the raw ones: none is left, however the stage ends.
        stores = {name: stack.enter_context(tempfile.TemporaryFile(dir=raw.parent)) for name in SPLITS}
        sorting, known = _sort_settled(own, config, stores)
        found = own.finish(sorting, stores, (config.channels, config.size, config.size), np.uint8)
    return ImageSplits(found.splits, found.classes, found.names, found.files, {**known, **found.known})


def _sort_settled(own: OwnFolder, config: Config, stores: Mapping[str, IO[bytes]]) -> tuple[Sorting, dict[str, Any]]:
    """Decode all pictures until the set's own white and ground are used; return them too, where they matter.

    A white that makes pictures unusable would give way, without these, to one that was tried before. It stays, and the
    reports of these pictures say why they are unusable.
    """
    look = Survey().settle(config)
    tried = []
    while True:
        survey = Survey()
        sorting = own.sort(_decode_all(own, look, survey), stores)
        settled = survey.settle(config)
        tried.append(look)
        if settled in tried:
            break
        look = settled
    known: dict[str, Any] = {"white": look.white, "bits": survey.highest.bit_length()} if look.white != WHITE else {}
    known |= {"transparent": survey.transparent, "background": look.background} if survey.transparent else {}
    return sorting, known


def _decode_all(own: OwnFolder, look: Config, survey: Survey) -> Iterator[tuple[FileReport, bytes]]:
    """Yield each file's report and its pixels, none where it cannot be used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        for report, picture in own.decode(lambda file, name: decode(file, name, look)):
            if picture is None:
                yield report, b""
                continue
            survey.add(picture)
            pixels = b"" if picture.pixels is None else picture.pixels.tobytes()
            yield replace(report, mode=picture.mode, note=picture.note, reason=picture.reason), pixels
