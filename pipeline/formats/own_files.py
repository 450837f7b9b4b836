"""Finds your own files within their folder, judges each, and quarantines the broken ones with a reason.

`image_folder` and `text_file` use it. Names may hold anything that the file system takes: spaces, quotes, newlines,
bytes that are no UTF-8.
"""

import hashlib
import json
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.formats.tokenizers import CORES

REPORTS = "files.json"
LISTED = 20  # broken files that an error names
THREADS = 16  # at most: beyond, they only wait for the interpreter's lock
AHEAD = 8  # results a thread that may wait to be taken

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FileReport:
    """The decision on one file: `path` is relative to the folder, with / between its parts; a folder's ends with /.

    mode: what the file holds, such as "RGB 640x480 PNG" or "utf-8-sig, CRLF". note: what was done to it on the way in,
    such as "first of 12 frames". reason: why the file is broken, else empty. duplicate_of: the file of equal content
    that is used in its place, else empty. split: the splits that it went to, if it is used.
    """

    path: str
    size: int
    sha256: str
    mode: str = ""
    note: str = ""
    reason: str = ""
    duplicate_of: str = ""
    split: str = ""

    @property
    def decision(self) -> str:
        """Say in a word what became of the file: quarantined, duplicate, used, or as yet only listed."""
        if self.reason:
            return "quarantined"
        return "duplicate" if self.duplicate_of else "used" if self.split else "listed"


def list_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (relative path, path) of every file below `root` that is not hidden, in byte order of the names.

    Links to files are yielded wherever they lead, so that each gets a report; `leaves` tells those that lead out. What
    is in a linked folder below `root` is yielded only at its own place.

    Raises:
        ArtifactError: if `root` is not a folder, or a folder below it cannot be read or is a link that leads out.
    """
    if not root.is_dir():
        msg = f"{root}: expected a folder, found {'a file' if root.exists() else 'nothing'}"
        raise ArtifactError(msg)

    def refuse(error: OSError) -> None:
        msg = f"{str(error.filename)!r}: cannot read the folder: {error.strerror}"
        raise ArtifactError(msg) from error

    found: list[tuple[str, Path]] = []
    for parent, folders, names in os.walk(root, onerror=refuse):  # never descends into linked folders
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent) / name for name in folders):
            if path.is_symlink() and leaves(root, path):
                msg = (
                    f"{str(path)!r}: a link to a folder outside of {root}; put the files themselves there, or remove it"
                )
                raise ArtifactError(msg)
        paths = [Path(parent) / name for name in names if not name.startswith(".")]
        found += [(path.relative_to(root).as_posix(), path) for path in paths]
    yield from sorted(found, key=lambda entry: os.fsencode(entry[0]))


def leaves(root: Path, path: Path) -> bool:
    """Say whether a path below `root` leads out of it, or to nothing, through a link."""
    return not path.exists() or not path.resolve().is_relative_to(root.resolve())


def open_file(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes; pipes, sockets and devices are not even opened, so that nothing hangs.

    Raises:
        OSError: if it is no regular file or cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "no regular file but a folder, pipe, socket or device")
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: PTH123 - of a descriptor


def examine(root: Path, name: str, path: Path) -> FileReport:
    """Report size and SHA-256 of one file that `list_files` found, or the reason why it cannot be used."""
    try:
        if path.is_symlink() and leaves(root, path):
            return FileReport(name, 0, "", reason="a link out of the folder, or to nothing")
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return FileReport(name, 0, "", reason=f"cannot be read: {error.strerror}")
    return FileReport(name, size, sha256, reason="" if size else "an empty file")


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], *, total: int, description: str
) -> Iterator[Result]:
    """Yield the result of `work` for each of `total` items, in their order, with a progress bar on a terminal.

    Threads, because hashing and decoding release the interpreter's lock: nothing is copied between processes, and no
    process imports torch again. At most AHEAD results a thread are held.
    """
    count = min(CORES, THREADS)
    pending: deque[Future[Result]] = deque()
    bar = tqdm(total=total, desc=description, unit=" files", disable=None)
    with ThreadPoolExecutor(count) as pool, bar:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > AHEAD * count:
                yield pending.popleft().result()
                bar.update()
        while pending:
            yield pending.popleft().result()
            bar.update()


def refuse_if_broken(root: Path, reports: Sequence[FileReport], limit: float, key: str) -> None:
    """Stop if more than the share `limit` of the files of the data set `key` is broken, or none is left.

    Raises:
        ArtifactError: with the first of them and their reasons, and the path of a file with all reports.
    """
    broken = [report for report in reports if report.reason]
    if reports and len(broken) <= limit * len(reports) and len(broken) < len(reports):
        return
    if not reports:
        msg = f"{root}: no file found"
        raise ArtifactError(msg)
    lines = [f"  {report.path!r}: {report.reason}" for report in broken[:LISTED]]
    more = [f"  and {len(broken) - LISTED} more"] if len(broken) > LISTED else []
    folder = artifacts.STATE / f"prepare-{key}"
    write_reports(folder, reports)
    msg = (
        f"{root}: {len(broken)} of {len(reports)} files cannot be used, allowed is a share of {limit:g}; "
        f"mend or remove them, or raise max_broken; {folder / REPORTS} has the report of each file:"
    )
    raise ArtifactError("\n".join([msg, *lines, *more]))


def write_reports(folder: Path, reports: Sequence[FileReport]) -> dict[str, Any]:
    """Write files.json, one file a line, if there are reports; return the manifest's summary of them."""
    if not reports:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{REPORTS}.tmp"
    with partial.open("w", encoding="utf-8") as file:  # line by line: a million files need little memory
        for index, report in enumerate(reports):
            file.write(
                (",\n" if index else "[\n") + json.dumps({**vars(report), "decision": report.decision}, sort_keys=True)
            )
        file.write("\n]\n")
    os.replace(partial, folder / REPORTS)
    files = [report for report in reports if not report.path.endswith("/")]
    counts = {
        "count": len(files),
        "quarantined": sum(bool(report.reason) for report in files),
        "duplicates": sum(bool(report.duplicate_of) for report in files),
    }
    return {"files": counts}


def read_reports(folder: Path) -> list[FileReport]:
    """Read back what `write_reports` wrote."""
    entries = artifacts.read_json(folder / REPORTS)
    return [FileReport(**{name: value for name, value in entry.items() if name != "decision"}) for entry in entries]
