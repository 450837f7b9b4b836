"""Tells what the folders above your own files mean: wrappers are entered, then come splits, then classes.

    layout = read_layout(["photos/train/cat/1.png", "photos/test/dog/2.png"])
    layout.place("photos/train/cat/1.png")      # Place(split="train", group="cat")

It also names the files next to pictures that are no pictures: litter of the system, captions, tables and documents.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Literal

Folders = Literal["auto", "classes", "splits", "none"]
Trail = tuple[str, ...]  # the folders above a file

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FILLERS = {"set", "split", "data", "images", "imgs", "pictures", "texts"}  # test_set and train-images are splits too
LITTER = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"}  # hidden files are never listed
LITTER_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information"}
SIDECARS = {".txt", ".caption", ".json", ".xml"}  # named as the picture that they describe
TABLES = {
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".parquet",
    ".xlsx",
    ".mat",
}  # such as metadata.csv of Hugging Face's imagefolder
COMPANIONS = {".jpg", ".jpeg", ".png", ".gif", ".webp"}  # covers next to sounds
COMPANIONS |= {".textgrid", ".lab", ".cue", ".m3u", ".m3u8", ".pls", ".asd", ".reapeaks"}  # labels, lists, peaks
DOCUMENTS = {".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".xml", ".yaml", ".yml", ".log", ".md5", ".sha256", ".py"}
DOCUMENT_NAMES = {"license", "licence", "copying", "readme"}  # without an ending


@dataclass(frozen=True)
class Place:
    """The split and the class that a file's folders name, empty where they name none, or why they cannot."""

    split: str = ""
    group: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Layout:
    """What the folders mean, from the top.

    wrapper: folders that hold everything. level: how many folders below it the split folder is, if there are such.
    inner: folders that hold everything within each split. labelled: whether the folder below names the class.
    splits: the names of the split folders, by split.
    """

    wrapper: Trail = ()
    level: int | None = None
    inner: Trail = ()
    labelled: bool = True
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def place(self, path: str) -> Place:
        """Return the place of a file."""
        split, rest, reason = self._descend(split_path(path))
        return Place(split, rest[0] if self.labelled and rest and not reason else "", reason)

    def is_class_folder(self, folder: str) -> bool:
        """Say whether a folder, whose path ends with /, is one that names a class."""
        _, rest, reason = self._descend(split_path(folder))
        return self.labelled and len(rest) == 1 and not reason

    def _descend(self, trail: Trail) -> tuple[str, Trail, str]:
        """Return the split, the folders that may name a class, and why a trail does not belong to the others."""
        split = ""
        if trail[: len(self.wrapper)] != self.wrapper:
            return split, (), f"outside of the folder {'/'.join(self.wrapper)!r} that holds the other files"
        trail = trail[len(self.wrapper) :]
        if self.level is not None:
            split = name_split(trail[self.level]) if len(trail) > self.level else ""
            if not split:
                return split, (), "outside of the folders that are the splits"
            trail = trail[: self.level] + trail[self.level + 1 :]
        if trail[: len(self.inner)] != self.inner:
            return split, (), f"outside of the folder {'/'.join(self.inner)!r} that holds the other files"
        return split, trail[len(self.inner) :], ""


def split_path(path: str) -> Trail:
    """Return the folders above a file, or a folder's own ones."""
    return tuple(path.split("/")[:-1])


def read_layout(paths: Iterable[str], folders: Folders = "auto") -> Layout:
    """Tell from the paths of all files what their folders mean.

    Split folders are those of one level whose names all say a split, `train` and another one at least: right below the
    wrapper, or each within its class.

    Args:
        paths: relative, with / between their parts.
        folders: which folders mean something: splits and classes, one of them, or none. Wrappers are entered unless
            it is `classes`, whose names then are those of the first folders, whatever they are.
    """
    if folders in {"classes", "none"}:
        return Layout(labelled=folders == "classes")
    trails = {split_path(path) for path in paths}
    wrapper = _find_common(trails)
    below = {trail[len(wrapper) :] for trail in trails}
    level = next((level for level in (0, 1) if _is_split_level(trail[level : level + 1] for trail in below)), None)
    splits: dict[str, set[str]] = {}
    inner: Trail = ()
    if level is not None:
        for trail in below:
            splits.setdefault(name_split(trail[level]), set()).add(trail[level])
        rest = {trail[:level] + trail[level + 1 :] for trail in below}
        inner = _find_common(rest)
    return Layout(wrapper, level, inner, folders == "auto", {name: sorted(found) for name, found in splits.items()})


def _find_common(trails: Collection[Trail]) -> Trail:
    """Return the folders that all trails begin with."""
    levels = zip(*trails, strict=False)
    return tuple(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))


def _is_split_level(names: Iterable[Trail]) -> bool:
    found = {name_split(name[0]) if name else "" for name in names}
    return "" not in found and "train" in found and len(found) > 1


def name_split(folder: str) -> str:
    """Return the split that a folder's name says, or nothing: Training_Set and train2017 are train."""
    first, *others = re.findall(r"[^\W\d_]+", folder.lower()) or [""]
    return SPLIT_WORDS.get(first, "") if FILLERS.issuperset(others) else ""


def resembles_split(folder: str) -> bool:
    """Say whether a name begins as that of a split, such as trainA, though it may be a class."""
    words = re.findall(r"[A-Z]?[a-z]+", folder)
    return bool(name_split(folder)) or bool(words and words[0].lower() in SPLIT_WORDS)


def is_litter(path: str) -> bool:
    """Say whether an operating system left this file behind."""
    *folders, name = path.lower().split("/")
    return name in LITTER or not LITTER_FOLDERS.isdisjoint(folders)


def name_other(path: str, pictures: Collection[str], endings: Collection[str]) -> str:
    """Return what a file that is no picture is by its name, or nothing where it should have been one.

    Args:
        path: of the file.
        pictures: the paths of pictures, or of other examples, with and without their endings.
        endings: of the names of examples.
    """
    if is_litter(path):
        return "litter"
    ending = PurePosixPath(path).suffix.lower()
    if ending in SIDECARS and path[: -len(ending)] in pictures:
        return "caption"
    if ending in TABLES:
        return "table"
    if ending in COMPANIONS and ending not in endings:
        return "companion"
    return "document" if ending in DOCUMENTS or PurePosixPath(path).name.lower() in DOCUMENT_NAMES else ""
