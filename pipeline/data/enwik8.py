"""enwik8: the first 100,000,000 bytes of the English Wikipedia of 2006-03-03 (Hutter Prize), XML, CC BY-SA 3.0.

The canonical split by bytes, 90 million, 5 million and 5 million: the keys `validation`, `test` and `split_seed` have
no effect here. A character whose bytes lie on both sides of a border belongs to the split in which it begins, so a
border moves by at most 3 bytes and every split is valid text; `tokenizer: byte` gives the usual bits per byte. The
archive is read again for each pass over a split: nothing is unpacked to disk, and a pass holds a megabyte in memory.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.artifacts import ArtifactError
from pipeline.formats.archives import read_members
from pipeline.formats.download import Source, fetch_all
from pipeline.kinds.text import TextConfig, Texts

LICENCE = "GNU Free Documentation License, text of Wikipedia's authors of 2006"
FILE = "enwik8.zip"
SHA256 = "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"
ADDRESSES = (
    "https://mattmahoney.net/dc/",
    "https://data.deepai.org/",
    "https://web.archive.org/web/20201027130031id_/http://mattmahoney.net/dc/",
)
MEMBER = "enwik8"
LIMIT = 1 << 28  # bytes
SIZES = {"train": 90_000_000, "validation": 5_000_000, "test": 5_000_000}  # bytes
PIECE = 1 << 20  # characters
CONTINUATION = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that no character begins with


class Config(TextConfig):
    """How the text is tokenised."""

    source: Literal["enwik8"]


def fetch(folder: Path, config: Config) -> None:
    """Download the archive."""
    del config
    fetch_all("enwik8", [Source(FILE, SHA256, ADDRESSES)], folder)


def prepare(raw: Path, config: Config) -> Texts:
    """Give the three splits; their text is read when it is asked for.

    Raises:
        ArtifactError: naming the archive, if the file in it is missing or not as long as the splits; while the text is
            read, if it is no UTF-8.
    """
    del config
    archive, total = raw / FILE, sum(SIZES.values())
    found = {member.name: member.size for member in read_members(archive, LIMIT)}
    if found.get(MEMBER) != total:
        msg = f"{archive}: expected a file {MEMBER} of {total} bytes, found {found or 'nothing'}"
        raise ArtifactError(msg)
    splits, start = {}, 0
    for name, size in SIZES.items():
        splits[name] = Span(archive, start, start + size)
        start += size
    return Texts(splits)


@dataclass(frozen=True)
class Span:
    """The text that begins between two bytes of the archive's file, in pieces of about a megabyte, pass after pass."""

    archive: Path
    start: int
    stop: int

    def __iter__(self) -> Iterator[str]:
        """Decode the pieces; an ArtifactError names the archive and the place that is no UTF-8."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        parts: list[str] = []
        position = self.start
        try:
            for block in self._read():
                parts.append(decoder.decode(block))
                position += len(block)
                if sum(map(len, parts)) >= PIECE:
                    yield "".join(parts)
                    parts.clear()
            parts.append(decoder.decode(b"", final=True))
            if any(parts):
                yield "".join(parts)
        except UnicodeDecodeError as error:
            msg = f"{self.archive}: expected UTF-8, {MEMBER} has {error.reason} shortly after byte {position}"
            raise ArtifactError(msg) from error

    def _read(self) -> Iterator[bytes]:
        """Yield the bytes from `start` to `stop`, both moved to the next first byte of a character."""
        begun, end = self.start == 0, 0
        for block in _read_blocks(self.archive):
            begin, end = end, end + len(block)
            part = block[max(self.start - begin, 0) : max(self.stop - begin, 0)]
            part = part if begun else part.lstrip(CONTINUATION)
            begun = begun or bool(part)
            beyond = block[max(self.stop - begin, 0) :]
            rest = beyond.lstrip(CONTINUATION)
            yield part + beyond[: len(beyond) - len(rest)]
            if rest:
                return


def _read_blocks(archive: Path) -> Iterator[bytes]:
    for member in read_members(archive, LIMIT):
        if member.name == MEMBER:
            yield from member.blocks
