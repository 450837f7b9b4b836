"""text_file: your own text, one file or the files of a folder, of any size.

    dvc exp run -S data.text.source=text_file -S data.text.path=novel.txt

One file is split by position. Several files are documents: each goes to a split as a whole, by a function of its text
and `split_seed` only, so that a new file moves no other. Folders or files named train, validation and test are the
splits, and the shares are then those of train; `folders: none` says otherwise. `fetch` lists every file with its
SHA-256; `prepare` reads exactly what is listed, decodes it and makes CRLF and CR a line feed; the files stay where they
are. Of files with equal text the first is used; files.json names the rest, and the reason for each file that is not
used.
"""

import codecs
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedReader, IncrementalNewlineDecoder
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline.artifacts import SPLITS, ArtifactError
from pipeline.formats.folders import is_litter, read_layout
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
from pipeline.kinds.text import TextConfig, Texts
from pipeline.randomness import derive_seed

CHUNK = 2**18  # bytes read at once
SPACING = 2**24  # bytes at least between two places that decoding can begin at
BETWEEN = "\n\n"  # two documents
NUL = "\0"
HELD_OUT = ("test", "validation")
BYTE_ORDER_MARKS = {  # the one of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
SUFFIXES = {".txt", ".md", ".rst", ".tex", ".html", ".py", ".c", ".csv"}  # of the texts that `suggest` looks for
LINE_ENDS = {"\n": "LF", "\r\n": "CRLF", "\r": "CR"}


class Config(TextConfig):
    """Which files are read, and how their text is decoded, split and tokenised."""

    READS_PATH: ClassVar = True

    source: Literal["text_file"]
    pattern: str = Field(
        "**/*.txt", description="files of a folder: *.txt and **/*.txt at any depth, books/*.txt in folders named books"
    )
    encoding: str = Field(
        "auto", description="of files without a byte-order mark; auto: UTF-8; else a name such as latin-1"
    )
    folders: Literal["splits", "none"] = Field(
        "splits", description="whether folders, or files, named train, validation and test are the splits"
    )
    max_broken: float = Field(0.01, ge=0, lt=1, description="share of the files that may be broken")

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        rest = pattern.removeprefix("**/")
        if not rest or "**" in rest:
            msg = "expected a pattern such as *.txt; ** may only stand at its beginning, as in **/*.txt"
            raise ValueError(msg)
        return pattern

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str) -> str:
        name = "utf-8" if encoding == "auto" else encoding
        try:
            "a".encode(name)
            codecs.getincrementaldecoder(name)
        except LookupError as error:
            msg = "expected auto or a text encoding that Python knows, such as latin-1"
            raise ValueError(msg) from error
        return encoding


@dataclass(frozen=True)
class Part:
    """Characters `start` to `stop` of a file's text, decoded again for each iteration.

    places: (character, byte) pairs that decoding can begin at, ascending. changed: time of the file's last change.
    """

    path: Path
    encoding: str
    start: int
    stop: int
    places: Sequence[tuple[int, int]]
    changed: int

    def __iter__(self) -> Iterator[str]:
        """Yield the text in pieces.

        Raises:
            ArtifactError: if the file was changed since it was judged.
        """
        position, byte = max(place for place in self.places if place[0] <= self.start)
        decoder = make_decoder(self.encoding)
        with open_file(self.path) as file:
            if self.path.stat().st_mtime_ns != self.changed:
                msg = f"{self.path}: changed while it was read; run `dvc repro` again"
                raise ArtifactError(msg)
            file.seek(byte)
            for chunk in read_chunks(file):
                text = decoder.decode(chunk, final=not chunk)
                yield text[max(0, self.start - position) : max(0, self.stop - position)]
                position += len(text)
                if position >= self.stop:
                    return


@dataclass(frozen=True)
class Documents:
    """Texts that follow one another, with an empty line between them."""

    parts: Sequence[Part]

    def __iter__(self) -> Iterator[str]:
        """Yield the text in pieces."""
        for index, part in enumerate(self.parts):
            if index:
                yield BETWEEN
            yield from part


@dataclass(frozen=True)
class Judged:
    """A listed file, and the whole of its text with its SHA-256 if it can be used."""

    report: FileReport
    part: Part | None = None
    sha256: str = ""


def suggest(path: Path) -> tuple[int, dict[str, Any], str] | None:
    """Return for a text, or the texts of a folder, their number, keys of a section, and what was seen; None without."""
    names = [path.name] if path.is_file() else [name for name, _ in list_files(path) if not is_litter(name)]
    counts = Counter(suffix for name in names if (suffix := PurePosixPath(name).suffix.lower()) in SUFFIXES)
    if not counts:
        return None
    ((suffix, count),) = counts.most_common(1)
    keys = {"split_seed": 0, "validation": 0.05, "test": 0.1, "tokenizer": "character", "vocabulary": 1024}
    keys |= {} if path.is_file() else {"pattern": f"**/*{suffix}"}
    return count, keys, f"{count} {'text' if count == 1 else 'texts'} named *{suffix}"


def fetch(folder: Path, config: Config) -> None:
    """List the file `config.path`, or every file below that folder, with its size and SHA-256, in files.json.

    Raises:
        ArtifactError: if there is no such file or folder, or the folder has no file.
    """
    root, name = find_root(config)
    files = [(name, root / name)] if name else list(list_files(root))
    if not files:
        msg = f"{root}: no file found"
        raise ArtifactError(msg)
    reports = map_in_threads(lambda file: examine(root, *file), files, total=len(files), description="list texts")
    write_reports(folder, list(reports))


def prepare(raw: Path, config: Config) -> Texts:
    """Judge the listed files that match `config.pattern`, and split their text; none of it stays in memory.

    Raises:
        ArtifactError: if no file matches, a file is not the listed one, or too many are broken.
    """
    root, name = find_root(config)
    listed = read_reports(raw)
    pattern = config.pattern.removeprefix("**/")
    fitting = [report for report in listed if name or PurePosixPath(report.path).match(pattern)]
    chosen = [report for report in fitting if not is_litter(report.path)]
    if not chosen:
        some = ", ".join(repr(report.path) for report in listed[:5])
        msg = f"{root}: no file matches the pattern {config.pattern!r}; the first of {len(listed)} files: {some}"
        raise ArtifactError(msg)
    total = sum(report.size for report in chosen)
    with tqdm(total=total, desc="read bytes", unit="B", unit_scale=True, disable=None) as bar:
        work = partial(judge, root, config.encoding, bar.update)
        judged = list(map_in_threads(work, chosen, total=len(chosen), description="read texts"))
    refuse_if_broken(root, [text.report for text in judged], config.max_broken, raw.name)
    places = find_splits([text.report.path for text in judged], config)
    order = (*HELD_OUT, "train", "")  # of two equal texts the first is used
    return split(sorted(judged, key=lambda text: order.index(places[text.report.path])), config, places)


def find_splits(paths: Sequence[str], config: Config) -> dict[str, str]:
    """Return the split that the folders of each file say, or that the files' own names say, or nothing."""
    for own_names in (False, True):
        named = {path: f"{PurePosixPath(path).with_suffix('')}/" if own_names else path for path in paths}
        layout = read_layout(named.values(), config.folders)
        if layout.level is not None:
            return {path: layout.place(name).split for path, name in named.items()}
    return dict.fromkeys(paths, "")


def find_root(config: Config) -> tuple[Path, str]:
    """Return the folder, and no name; or a single file's folder and its name."""
    path = Path(config.path)
    if not path.is_file():
        return path, ""
    path = path.resolve()  # the file itself may be given by a link
    return path.parent, path.name


def split(judged: Sequence[Judged], config: Config, places: Mapping[str, str]) -> Texts:
    """Split a single text by position, several as documents; of equal texts the first is used.

    Args:
        judged: the texts.
        config: the shares of the splits that no folder says.
        places: the split that a file's folders say, by its path; empty if they say none.
    """
    first: dict[str, Judged] = {}
    for text in judged:
        if text.part:
            first.setdefault(text.sha256, text)
    shares = {
        name: 0.0 if name in places.values() else share
        for name, share in (("validation", config.validation), ("test", config.test))
    }
    free = [text.sha256 for text in first.values() if places[text.report.path] not in HELD_OUT]
    is_single, drawn = len(free) == 1, draw_splits(free, config.split_seed, shares)
    parts: dict[str, list[Part]] = {name: [] for name in SPLITS}
    reports = []
    for text in judged:
        report, used, place = text.report, first.get(text.sha256), places[text.report.path]
        if used and used is not text:
            report = replace(report, duplicate_of=used.report.path)
        elif text.part and (place in HELD_OUT or not is_single):
            name = place if place in HELD_OUT else drawn[text.sha256]
            parts[name].append(text.part)
            report = replace(report, split=name)
        elif text.part:
            cut = cut_by_position(text.part, shares)
            for name, part in cut.items():
                parts[name].append(part)
            report = replace(report, split=", ".join(cut))
        reports.append(report)
    encodings = sorted({text.part.encoding for text in first.values() if text.part})
    splits = {name: Documents(found) for name, found in parts.items() if found}
    said = {name: "by name" if name in places.values() else "a share of train" for name in splits}
    reports.sort(key=lambda report: os.fsencode(report.path))
    known = {"splits": said} if any(places.values()) else {}
    return Texts(splits, known, reports, ", ".join(encodings))


def cut_by_position(part: Part, shares: Mapping[str, float]) -> dict[str, Part]:
    """Cut a text into the splits that get some of it, training text first."""
    length = part.stop
    ends = [0, int(length * (1 - shares["validation"] - shares["test"])), int(length * (1 - shares["test"])), length]
    places = zip(SPLITS, ends, ends[1:], strict=False)
    return {name: replace(part, start=start, stop=stop) for name, start, stop in places if start < stop}


def draw_splits(hashes: Iterable[str], seed: int, shares: Mapping[str, float]) -> dict[str, str]:
    """Return the split of each document by the SHA-256 of its text.

    Of few documents, a split may draw none. It then gets the first one, in the order of the draw, of the split that has
    most of them, if another one stays there.
    """
    drawn = {sha256: choose_split(sha256, seed, shares) for sha256 in hashes}
    for name in [*(name for name, share in shares.items() if share), "train"]:
        counts = Counter(drawn.values())
        most = max(counts, key=counts.__getitem__, default="")
        if not counts[name] and counts[most] > 1:
            found = [sha256 for sha256, split in drawn.items() if split == most]
            drawn[min(found, key=lambda sha256: derive_seed(seed, "document", sha256))] = name
    return drawn


def choose_split(sha256: str, seed: int, shares: Mapping[str, float]) -> str:
    """Return the split of the document whose text has this SHA-256, by the shares of validation and test."""
    place = derive_seed(seed, "document", sha256) / 2**63
    if place < shares["validation"]:
        return "validation"
    return "test" if place < shares["validation"] + shares["test"] else "train"


def judge(root: Path, encoding: str, watch: Callable[[int], object], listed: FileReport) -> Judged:
    """Read a listed file once: check that it is the listed one, decode it, and look for what is no text.

    `watch` is told the number of bytes of each chunk that was read.

    Raises:
        ArtifactError: if it is not the listed file.
    """
    if not listed.sha256:
        return Judged(listed)
    path = root / listed.path
    sha256 = hashlib.sha256()
    try:
        with open_file(path) as file:
            changed = path.stat().st_mtime_ns
            scan = Scan(file.peek(4), encoding)
            for chunk in read_chunks(file):
                sha256.update(chunk)
                scan.feed(chunk)
                watch(len(chunk))
            found = sha256.hexdigest()
    except OSError as error:
        found = str(error.strerror)
    if found != listed.sha256:
        msg = (
            f"{root}: {listed.path!r} changed after it was listed: expected SHA-256 {listed.sha256}, found {found}; "
            "run `dvc repro`, which lists the files again"
        )
        raise ArtifactError(msg)
    report = replace(listed, mode=scan.mode, note=scan.note, reason=listed.reason or scan.reason)
    if report.reason:
        return Judged(report)
    part = Part(path, scan.encoding, 0, scan.characters, scan.places, changed)
    return Judged(report, part, scan.content.hexdigest())


class Scan:
    """What a file holds, found chunk by chunk: the decoder keeps what is cut between two."""

    def __init__(self, head: bytes, encoding: str) -> None:
        """Choose the encoding: a byte-order mark decides, then the config.

        Args:
            head: the first bytes of the file.
            encoding: of files without a byte-order mark; "auto" is UTF-8.
        """
        self.mark = next((mark for mark in BYTE_ORDER_MARKS if head.startswith(mark)), b"")
        self.encoding = BYTE_ORDER_MARKS.get(self.mark, "utf-8" if encoding == "auto" else encoding)
        self.decoder = codecs.getincrementaldecoder(self.encoding)()
        self.line_feeds = IncrementalNewlineDecoder(None, translate=True)
        self.clean = self.decoder.getstate(), self.line_feeds.getstate()
        self.content = hashlib.sha256()  # of the text, as UTF-8
        self.characters = 0
        self.returns = 0  # line ends that become a line feed
        self.bytes = 0
        self.places = [(0, len(self.mark))]
        self.reason = ""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the file, at its end none."""
        skip = max(0, len(self.mark) - self.bytes)
        self.bytes += len(chunk)
        if self.reason:
            return
        try:
            found = self.decoder.decode(chunk[skip:], final=not chunk)
            self.returns += found.count("\r")
            text = self.line_feeds.decode(found, final=not chunk)
            self.content.update(text.encode("utf-8"))
        except UnicodeDecodeError as error:
            byte = self.bytes - len(error.object) + error.start
            self.reason = f"not {self.encoding}: {error.reason} at byte {byte}"
            return
        except UnicodeEncodeError as error:
            self.reason = f"not {self.encoding}: {error.reason} at character {self.characters + error.start}"
            return
        if NUL in text:
            self.reason = f"character {self.characters + text.index(NUL)} is NUL: binary, or in another encoding"
        self.characters += len(text)
        if self.bytes >= self.places[-1][1] + SPACING and self.clean == (
            self.decoder.getstate(),
            self.line_feeds.getstate(),
        ):
            self.places.append((self.characters, self.bytes))
        if not chunk and not self.characters:
            self.reason = "no text"

    @property
    def line_ends(self) -> list[str]:
        """Names of the line ends that were found."""
        found = self.line_feeds.newlines or ()
        return [LINE_ENDS[end] for end in LINE_ENDS if end == found or (isinstance(found, tuple) and end in found)]

    @property
    def mode(self) -> str:
        """Encoding and line ends, such as "utf-8 with BOM, CRLF"."""
        return f"{self.encoding}{' with BOM' * bool(self.mark)}, {' and '.join(self.line_ends) or 'one line'}"

    @property
    def note(self) -> str:
        """What the text is changed by, and how often."""
        foreign = [name for name in self.line_ends if name != "LF"]
        return f"{' and '.join(foreign)} became LF, {self.returns} in all" if foreign else ""


def make_decoder(encoding: str) -> IncrementalNewlineDecoder:
    """Return a decoder that makes CRLF and CR a line feed."""
    return IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)


def read_chunks(file: BufferedReader) -> Iterator[bytes]:
    """Yield a file's bytes, and b"" at the end."""
    while chunk := file.read(CHUNK):
        yield chunk
    yield b""
