"""Sorts the files of your own folders into splits and classes; image_folder and audio_folder use it.

    list_folder(raw, config.path, "list pictures")                       # the stage fetch
    own = OwnFolder(raw, config, {".png", ".jpg"}, "picture")            # the stage prepare
    sorting = own.sort(((report, content) for report, content in ...), stores)
    sorted_files = own.finish(sorting, stores, (3, 64, 64), np.uint8)

A folder says a file's split and class, or else its content says the split: a new file moves no other, and no two splits
share one content. Of files with equal content the first is used, those of test and validation folders before those of
train. A content is what the set holds of a file: one row or more, such as the pixels of a picture.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import SPLITS, ArtifactError
from pipeline.formats.folders import Folders, Layout, is_litter, name_other, read_layout
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
from pipeline.randomness import derive_seed

HELD_OUT = ("test", "validation")
RANKS = {name: rank for rank, name in enumerate([*HELD_OUT, "train", ""])}  # of two equal files the first is used

Decoded = TypeVar("Decoded")


class Keys(Protocol):
    """Keys that every source of own folders has."""

    @property
    def path(self) -> str:
        """The folder."""

    @property
    def folders(self) -> Folders:
        """Which folders mean something."""

    @property
    def split_seed(self) -> int:
        """Seed of the split."""

    @property
    def validation(self) -> float:
        """Share of the validation split."""

    @property
    def test(self) -> float:
        """Share of the test split."""

    @property
    def max_broken(self) -> float:
        """Share of the files that may be broken."""


@dataclass(frozen=True)
class Sorting:
    """The report of each file with its split, the SHA-256 of its content, and the bytes of it; none: not used."""

    reports: Sequence[FileReport]
    digests: Sequence[str]
    sizes: Sequence[int]


@dataclass(frozen=True)
class Sorted:
    """Values (N, ...), maybe memory-mapped, and labels int64 (N,) of each split; the classes; reports; facts."""

    splits: dict[str, tuple[Tensor, Tensor]]
    classes: int
    names: Sequence[str]
    files: Sequence[FileReport]
    known: Mapping[str, Any]


def list_folder(folder: Path, path: str, description: str) -> None:
    """List every folder below `path`, and every file with its size and SHA-256, in files.json of `folder`.

    Raises:
        ArtifactError: if `path` is not a folder, or has no file, or a folder below it cannot be read.
    """
    root = Path(path)
    found = [(name, file) for name, file in list_files(root) if not name.endswith(".dvc")]  # of `dvc add`
    if not found:
        msg = f"{root}: no file found"
        raise ArtifactError(msg)
    reports = map_in_threads(lambda file: examine(root, *file), found, total=len(found), description=description)
    write_reports(folder, [*(FileReport(name, 0, "") for name in list_folders(root)), *reports])


def list_folders(root: Path) -> list[str]:
    """Return the relative path of every folder below `root` that is neither hidden nor a link, with / at its end."""
    found = []
    for parent, folders, _ in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent) / name for name in folders)
        found += [f"{path.relative_to(root).as_posix()}/" for path in paths if not path.is_symlink()]
    return sorted(found, key=os.fsencode)


def may_have_classes(config: Keys) -> bool:
    """Say whether folders may name classes, as far as one can tell without reading them."""
    folders = not Path(config.path).is_dir() or any(path.is_dir() for path in Path(config.path).glob("[!.]*"))
    return folders and config.folders in {"auto", "classes"}


def choose_split(digest: str, config: Keys, folder: str = "", folders: Collection[str] = ()) -> str:
    """Return the split of the content with this SHA-256: that of its folder, or a share of those that have none.

    `test` is a share of all, then `validation` of the rest. Where folders are splits, the shares are of the folder
    train, and only of splits that have no folder.

    Args:
        digest: of the content.
        config: the shares, and the seed.
        folder: the split that the file's folder says, if any.
        folders: all splits that have a folder.
    """
    if folder in HELD_OUT:
        return folder
    for name, share in _list_shares(config):
        if name not in folders and derive_seed(config.split_seed, name, digest) < share * 2**63:
            return name
    return "train"


def _list_shares(config: Keys) -> list[tuple[str, float]]:
    return [("test", config.test), ("validation", config.validation)]


class OwnFolder:
    """The files that `list_folder` listed, what their folders mean, and what becomes of each."""

    def __init__(self, raw: Path, config: Keys, endings: Collection[str], noun: str) -> None:
        """Read the listing.

        Args:
            raw: folder of the listing.
            config: of the source.
            endings: of the names that tell what the folders mean.
            noun: of an example, such as "picture", for messages.

        Raises:
            ArtifactError: if there are no split folders, though the config says so.
        """
        self.root, self.key, self.config, self.noun = Path(config.path), raw.name, config, noun
        self.endings = endings
        listed = read_reports(raw)
        files = [report for report in listed if not report.path.endswith("/")]
        self.folders = [report for report in listed if report.path.endswith("/")]
        usable = [report.path for report in files if not report.reason and not is_litter(report.path)]
        likely = [path for path in usable if Path(path).suffix.lower() in endings] or usable
        self.layout = find_layout(self.root, likely, config)
        self.places = {report.path: self.layout.place(report.path) for report in files}
        mixed = len({bool(self.places[path].group) for path in likely}) == 2
        judged = [self._judge(report, mixed) for report in files]
        self.files = sorted(judged, key=lambda report: RANKS[self.places[report.path].split])

    def _judge(self, report: FileReport, mixed: bool) -> FileReport:
        """Give a file a reason if its place says that it cannot be used."""
        place = self.places[report.path]
        reason = report.reason or ("litter" if is_litter(report.path) else place.reason)
        if not reason and mixed and not place.group:
            advice = f"`folders: none` takes all {self.noun}s without classes"
            reason = f"next to class folders: its class is not known; {advice}"
        return replace(report, reason=reason)

    def decode(self, decode: Callable[[BinaryIO, str], Decoded]) -> Iterator[tuple[FileReport, Decoded | None]]:
        """Yield each file with what `decode` makes of it, or None where it cannot be used; files.json has the order.

        Raises:
            ArtifactError: if a file is not the listed one.
        """

        def work(report: FileReport) -> Decoded | None:
            return self._decode_listed(report, decode)

        results = map_in_threads(work, self.files, total=len(self.files), description=f"decode {self.noun}s")
        yield from zip(self.files, results, strict=True)

    def _decode_listed(self, report: FileReport, decode: Callable[[BinaryIO, str], Decoded]) -> Decoded | None:
        """Decode a file that is to be used, if it is the listed one."""
        if not report.sha256:
            return None
        try:
            with open_file(self.root / report.path) as file:
                found = file_digest(file, "sha256").hexdigest()
                if found == report.sha256:
                    return None if report.reason else decode(file, report.path)
        except OSError as error:
            found = str(error.strerror)
        msg = (
            f"{self.root}: {report.path!r} changed after it was listed: expected SHA-256 {report.sha256}, "
            f"found {found}; run `dvc repro`, which lists the folder again"
        )
        raise ArtifactError(msg)

    def sort(self, decoded: Iterable[tuple[FileReport, bytes]], stores: Mapping[str, IO[bytes]]) -> Sorting:
        """Write each new content to the file of its split, which is emptied before.

        Args:
            decoded: each file with its content, or with no bytes where it cannot be used.
            stores: a file for each split.
        """
        for store in stores.values():
            store.seek(0)
            store.truncate()
        reports, digests, sizes = [], [], []
        first: dict[str, str] = {}
        folders = {place.split for place in self.places.values()}
        for report, content in decoded:
            digest = sha256(content).hexdigest() if content else ""
            used = first.setdefault(digest, report.path) if content else ""
            split = ""
            if used == report.path:
                split = choose_split(digest, self.config, self.places[report.path].split, folders)
                stores[split].write(content)
            duplicate_of = used if used != report.path else ""
            reports.append(replace(report, split=split, duplicate_of=duplicate_of))
            digests.append(digest)
            sizes.append(len(content) if split else 0)
        return Sorting(_name_others(reports, self.endings), digests, sizes)

    def finish(
        self, sorting: Sorting, stores: Mapping[str, IO[bytes]], shape: tuple[int, ...], dtype: type[np.generic]
    ) -> Sorted:
        """Map the stores as values (N, *shape) without quarantined files, which live on when the stores are closed.

        Raises:
            ArtifactError: if too many files are broken, or a split would be empty.
        """
        reports = self._quarantine_contradictions(sorting)
        refuse_if_broken(self.root, reports, self.config.max_broken, self.key)
        self._refuse_empty(reports)
        row = int(np.prod(shape)) * np.dtype(dtype).itemsize
        values, groups = {}, {}
        for name in SPLITS:
            files = [
                (after, size // row)
                for before, after, size in zip(sorting.reports, reports, sorting.sizes, strict=True)
                if before.split == name
            ]
            kept = [not report.reason for report, rows in files for _ in range(rows)]
            values[name] = _map_rows(stores[name], kept, shape, dtype)
            groups[name] = [
                self.places[report.path].group for report, rows in files if not report.reason for _ in range(rows)
            ]
        names = sorted(set().union(*groups.values()), key=os.fsencode)
        label = {name: index for index, name in enumerate(names)}
        splits = {name: (values[name], torch.tensor([label[each] for each in groups[name]])) for name in SPLITS}
        ordered = sorted(reports, key=lambda report: os.fsencode(report.path))
        known = describe_layout(self.layout, self.config) | self._count_moved(reports)
        return Sorted(
            splits, len(names), [name for name in names if name], [*ordered, *self._report_empty(names)], known
        )

    def _quarantine_contradictions(self, sorting: Sorting) -> list[FileReport]:
        """Give every file whose content several classes claim a reason."""
        classes: dict[str, set[str]] = defaultdict(set)
        for report, digest in zip(sorting.reports, sorting.digests, strict=True):
            classes[digest].add(self.places[report.path].group)

        def judge(report: FileReport, digest: str) -> FileReport:
            if not digest or len(classes[digest]) == 1:
                return report
            names = ", ".join(map(repr, sorted(classes[digest], key=os.fsencode)))
            return replace(report, reason=f"the same {self.noun} is in the classes {names}", duplicate_of="", split="")

        return [judge(report, digest) for report, digest in zip(sorting.reports, sorting.digests, strict=True)]

    def _refuse_empty(self, reports: Sequence[FileReport]) -> None:
        counts = {name: sum(report.split == name for report in reports) for name in SPLITS}
        if not all(counts.values()):
            found = ", ".join(f"{name} {count}" for name, count in counts.items())
            config = self.config
            msg = (
                f"{self.root}: every split needs a {self.noun}, got {found} by test {config.test:g}, "
                f"validation {config.validation:g}, split_seed {config.split_seed}; "
                f"add {self.noun}s, raise the share of the empty split, or change split_seed"
            )
            raise ArtifactError(msg)

    def _report_empty(self, names: Sequence[str]) -> list[FileReport]:
        """Report the class folders without a usable file in any split, and say so."""
        paths = [report.path for report in self.folders if not is_litter(report.path)]
        classes = [path for path in paths if self.layout.is_class_folder(path)]
        empty = [folder for folder in classes if self.layout.place(folder).group not in names]
        for folder in empty:
            print(f"class folder {folder!r} has no {self.noun} that can be used: it is no class")
        return [FileReport(folder, 0, "", note=f"no {self.noun} that can be used: no class") for folder in empty]

    def _count_moved(self, reports: Sequence[FileReport]) -> dict[str, int]:
        """Count the files that are in the folders of two splits, and used in one."""
        pairs = [(report.path, report.duplicate_of) for report in reports if report.duplicate_of]
        moved = sum(self.places[path].split != self.places[used].split for path, used in pairs)
        return {"in_two_splits": moved} if moved else {}


def find_layout(root: Path, likely: Sequence[str], config: Keys) -> Layout:
    """Return what the folders above the files mean that are likely examples.

    Raises:
        ArtifactError: if there are no split folders, though the config says so.
    """
    layout = read_layout(likely, config.folders)
    if config.folders == "splits" and layout.level is None:
        names = ", ".join(sorted({path.split("/")[0] for path in likely if "/" in path})[:10]) or "no folders"
        msg = f"{root}: `folders: splits` expects folders named train and validation or test, found {names}"
        raise ArtifactError(msg)
    return layout


def describe_layout(layout: Layout, config: Keys) -> dict[str, Any]:
    """Return what the manifest says of the folders, where they are more than classes."""
    known: dict[str, Any] = {"wrapper": "/".join(layout.wrapper)} if layout.wrapper else {}
    if layout.level is not None:
        shares = {name: f"a share of {share:g} of train" for name, share in _list_shares(config)}
        folders = {name: ", ".join(f"{folder}/" for folder in layout.splits.get(name, ())) for name in SPLITS}
        known["splits"] = {name: folder or shares[name] for name, folder in folders.items()}
    return known


def _name_others(reports: Sequence[FileReport], endings: Collection[str]) -> list[FileReport]:
    """Tell the broken files that were never examples from those that should have been."""
    examples = {report.path for report in reports if not report.reason}
    examples |= {path.rpartition(".")[0] for path in examples}
    named = []
    for report in reports:
        other = name_other(report.path, examples, endings) if report.reason else ""
        named.append(replace(report, reason="", other=other) if other else report)
    return named


def _map_rows(store: IO[bytes], kept: Sequence[bool], shape: tuple[int, ...], dtype: type[np.generic]) -> Tensor:
    """Map a file of rows as a tensor, without those that are not kept; it lives on when the file is closed."""
    store.flush()
    values = np.memmap(store, dtype=dtype, mode="r+", shape=(len(kept), *shape))
    rows = [row for row, keep in enumerate(kept) if keep]
    for place, row in enumerate(rows):
        if place != row:
            values[place] = values[row]
    return torch.from_numpy(values[: len(rows)])
