"""Reads the files in tar, tar.gz and zip archives without ever writing one to disk, and refuses hostile archives.

Refused are absolute paths, `..`, links of any kind, devices, sparse and encrypted files, two members of one name,
archives that are cut off, and bombs: too many members or too many bytes, announced or found. Python's own filters are
not relied on: those of 3.11 before 3.11.13 have known holes (CVE-2025-4517 and its kin).
"""

import gzip
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from pipeline.artifacts import ArtifactError

CHUNK = 1 << 16  # bytes that are read at once, and all that a tar header of a long name may ask for
RATIO = 200  # times its own size that an archive may unpack to ...
FREE = 1 << 20  # ... and bytes that are always allowed
MEMBERS = 200_000
BROKEN = (  # what the readers raise; NotImplementedError comes from a zip of a later version
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RecursionError,
)


class Member(NamedTuple):
    """A regular file of an archive: its path with / between the parts, its size in bytes, and its bytes in blocks."""

    name: str
    size: int
    blocks: Iterator[bytes]


def read_members(archive: Path, limit: int) -> Iterator[Member]:
    """Yield the regular files of an archive in its order; the blocks of one are read before the next is asked for.

    limit: bytes that the archive may unpack to, a tar's headers included; never more than RATIO times its own size.

    Raises:
        ArtifactError: naming archive and member, if it is refused or broken; also while blocks are read.
    """
    size = archive.stat().st_size
    budget = _Budget(archive, min(limit, RATIO * size + FREE))
    with archive.open("rb") as file:
        start = file.read(4)
    try:
        if start in {b"PK\x03\x04", b"PK\x05\x06"}:
            yield from _read_zip(archive, budget)
        else:
            yield from _read_tar(archive, budget, gzipped=start.startswith(b"\x1f\x8b"))
    except BROKEN as error:
        raise _broken(archive, error) from error


def read_files(archive: Path, names: Collection[str], limit: int) -> dict[str, bytes]:
    """Return the content of the named files of an archive, all of whose members are checked.

    Raises:
        ArtifactError: as `read_members`, or if a file is missing.
    """
    found = {member.name: b"".join(member.blocks) for member in read_members(archive, limit) if member.name in names}
    if missing := sorted(set(names) - found.keys()):
        msg = f"{archive}: expected the files {', '.join(names)}; missing: {', '.join(missing)}"
        raise ArtifactError(msg)
    return found


@dataclass
class _Budget:
    """What one archive may still hold: bytes, members, and names that are not taken."""

    archive: Path
    allowed: int

    def __post_init__(self) -> None:
        self.names: set[str] = set()
        self.members = 0
        self.announced = 0

    def refusal(self, name: str, why: str) -> ArtifactError:
        return ArtifactError(f"{self.archive}: refused, member {name!r} {why}")

    def admit(self, name: str, size: int) -> str:
        """Check a member's path and announced size; return the path without `.` parts.

        Raises:
            ArtifactError: if the path leads anywhere but below, or the archive would hold too much.
        """
        parts = re.split(r"[/\\]", name)
        if not parts[0] or re.match("[A-Za-z]:", name):
            raise self.refusal(name, "has an absolute path or none")
        if ".." in parts or "\0" in name:
            raise self.refusal(name, "has a path with .. or a zero byte")
        self.members += 1
        if self.members > MEMBERS:
            raise self.refusal(name, f"is one of more than {MEMBERS}")
        self.announced += size
        if size < 0 or self.announced > self.allowed:
            why = f"announces {size} bytes; {self.allowed} are allowed in all (at most {RATIO} times the archive)"
            raise self.refusal(name, why)
        return "/".join(part for part in name.split("/") if part not in {"", "."})

    def take(self, name: str) -> None:
        """Refuse a file whose name, as macOS compares them, was there before."""
        key = unicodedata.normalize("NFC", name).casefold()
        if key in self.names:
            raise self.refusal(name, "is there twice")
        self.names.add(key)


def _read_zip(archive: Path, budget: _Budget) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name = budget.admit(info.orig_filename, info.file_size)
            if stat.S_IFMT(info.external_attr >> 16) not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise budget.refusal(name, "is a link or a device")
            if info.flag_bits & 1 or info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise budget.refusal(name, "is encrypted or compressed by another method than deflate")
            if not info.is_dir():
                budget.take(name)
                with opened.open(info) as file:
                    yield Member(name, info.file_size, _read_blocks(file, name, info.file_size, budget))


def _read_tar(archive: Path, budget: _Budget, *, gzipped: bool) -> Iterator[Member]:
    with gzip.open(archive) if gzipped else archive.open("rb") as file:
        guard = _Guard(file, budget)
        with tarfile.open(fileobj=guard, mode="r:", encoding="utf-8") as opened:  # type: ignore[call-overload]
            for info in opened:
                name = budget.admit(info.name, info.size)
                if info.issparse() or not (info.isreg() or info.isdir()):
                    raise budget.refusal(name, "is a link, a device or sparse")
                if not info.isdir():
                    budget.take(name)
                    with opened.extractfile(info) as content:
                        yield Member(name, info.size, _read_blocks(content, name, info.size, budget))
            guard.seek(opened.offset)  # tarfile takes a broken header for the end
            _check_end(guard, archive)


def _check_end(guard: "_Guard", archive: Path) -> None:
    """Read on to the end, which tells whether a gzip file is whole; a tar ends with at least one block of zeros."""
    length = 0
    while block := guard.read(CHUNK):
        length += len(block)
        if block.strip(b"\0"):
            length = 0
            break
    if length < tarfile.BLOCKSIZE:
        msg = f"{archive}: broken archive: it ends in the middle or has a broken header"
        raise ArtifactError(msg)


def _read_blocks(file: IO[bytes], name: str, size: int, budget: _Budget) -> Iterator[bytes]:
    found = 0
    try:
        while block := file.read(CHUNK):
            found += len(block)
            yield block
    except BROKEN as error:
        raise _broken(budget.archive, error, name) from error
    if found != size:
        raise budget.refusal(name, f"announces {size} bytes and has {found}")


def _broken(archive: Path, error: BaseException, name: str | None = None) -> ArtifactError:
    member = f" at member {name!r}" if name else ""
    return ArtifactError(f"{archive}: broken archive{member}: {type(error).__name__}: {error}")


class _Guard:
    """The bytes of a tar, as far as they are allowed: neither position nor one read may go beyond."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, budget: _Budget) -> None:
        self.file = file
        self.budget = budget

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK:
            msg = f"{self.budget.archive}: refused, a header announces a name of {size} bytes"
            raise ArtifactError(msg)
        data = self.file.read(size)
        self._check(self.file.tell())
        return data

    def seek(self, position: int) -> int:
        self._check(position)
        return self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()

    def _check(self, position: int) -> None:
        if not 0 <= position <= self.budget.allowed:
            allowed = f"{self.budget.allowed} bytes (at most {RATIO} times the archive)"
            msg = f"{self.budget.archive}: refused, it unpacks to more than the allowed {allowed}"
            raise ArtifactError(msg)
