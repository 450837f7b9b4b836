"""Files of one's own: found without leaving their folder, judged one by one, the broken ones quarantined with a reason.

`image_folder` and `text_file` use it. Names may hold anything that the file system takes: spaces, quotes, newlines,
bytes that are no UTF-8.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.artifacts import ArtifactError

LISTED = 20  # broken files that an error names


@dataclass(frozen=True)
class FileReport:
    """What became of one file: `path` relative to the folder, with / between its parts.

    mode: what the file holds, such as "RGB 640x480 PNG" or "utf-8-sig, CRLF". reason: empty if the file is used,
    else why it is not. note: what was done to it on the way in, such as "first of 12 frames".
    """

    path: str
    size: int
    sha256: str
    mode: str = ""
    note: str = ""
    reason: str = ""


def list_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (relative path, path) of every file below `root` that is not hidden, in byte order of the names.

    Links are followed only to targets inside the folder; links that leave it are yielded too, so that they get a
    report, and `leaves` tells them.

    Raises:
        ArtifactError: if `root` is not a folder.
    """
    if not root.is_dir():
        msg = f"{root}: expected a folder, found {'a file' if root.exists() else 'nothing'}"
        raise ArtifactError(msg)
    found: list[tuple[str, Path]] = []
    for parent, folders, names in os.walk(root):  # never descends into linked folders
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in [*names, *linked]:
            if not name.startswith("."):
                path = Path(parent) / name
                found.append((path.relative_to(root).as_posix(), path))
    yield from sorted(found, key=lambda entry: os.fsencode(entry[0]))


def leaves(root: Path, path: Path) -> bool:
    """Say whether a path below `root` leads out of it, or to nothing, through a link."""
    return not path.exists() or not path.resolve().is_relative_to(root.resolve())


def refuse_if_broken(root: Path, reports: Sequence[FileReport], limit: float) -> None:
    """Stop if more than the share `limit` of the files is broken, or none is left.

    Raises:
        ArtifactError: with the first of them and their reasons.
    """
    broken = [report for report in reports if report.reason]
    if reports and len(broken) <= limit * len(reports) and len(broken) < len(reports):
        return
    if not reports:
        msg = f"{root}: no file found"
        raise ArtifactError(msg)
    lines = [f"  {report.path!r}: {report.reason}" for report in broken[:LISTED]]
    more = [f"  and {len(broken) - LISTED} more"] if len(broken) > LISTED else []
    msg = f"{root}: {len(broken)} of {len(reports)} files cannot be used, allowed is a share of {limit:g}:"
    raise ArtifactError("\n".join([msg, *lines, *more]))


def write_reports(folder: Path, reports: Sequence[FileReport]) -> dict[str, Any]:
    """Write files.json, if there are reports; return the manifest's summary of them."""
    if not reports:
        return {}
    artifacts.write_json(folder / "files.json", [asdict(report) for report in reports])
    return {"files": {"count": len(reports), "quarantined": sum(bool(report.reason) for report in reports)}}
