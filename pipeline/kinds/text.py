"""Text sets: what every text source shares, and how its text is split, tokenised and written.

A source's `prepare` returns Texts; the stage `prepare` calls `write`. The text may be larger than memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator
from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline import artifacts
from pipeline.artifacts import SPLITS, ArtifactError, TextSpec
from pipeline.formats.overlap import WINDOW, measure_overlap, sample_windows
from pipeline.formats.own_files import FileReport, write_reports
from pipeline.formats.tokenizers import (
    Kind,
    TextTokenizer,
    code_points,
    cut,
    distinct_characters,
    map_pieces,
    train_tokenizer,
)
from pipeline.params import Source
from pipeline.randomness import make_generator

SHORTEST = 2  # characters of a split


class TextConfig(Source):
    """Keys that every text source shares, so that `source` alone changes the data of a run."""

    KIND: ClassVar = "text"

    path: str = Field(min_length=1, description="file or folder of one's own, for text_file; others ignore it")
    split_seed: int = Field(ge=0, description="seed that shuffles the documents; one document is split by position")
    validation: float = Field(gt=0, lt=1, description="share of the characters")
    test: float = Field(ge=0, lt=1, description="share of the characters; 0 for no test split (nanoGPT's protocol)")
    tokenizer: Kind = Field(description="what a token is")
    vocabulary: int = Field(
        ge=257, description="tokens of bpe, learnt from 16 million characters at most; the others have what they need"
    )

    @model_validator(mode="after")
    def _check(self) -> "TextConfig":
        if self.validation + self.test >= 1:
            msg = f"validation + test must stay below 1, got {self.validation} + {self.test}"
            raise ValueError(msg)
        return self


@dataclass(frozen=True)
class Texts:
    """The text of each split, by its name, in pieces of any size that can be read again and again.

    A text in memory is a list of one string; a large one an object that reads its files anew whenever it is iterated.
    A split without text is absent. `known` holds facts about the source that the manifest should carry, such as its
    entropy rate; `files` the reports of one's own files; `encoding` that of the source's files.
    """

    splits: Mapping[str, Iterable[str]]
    known: Mapping[str, float] = field(default_factory=dict)
    files: Sequence[FileReport] = ()
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Watched:
    """A text whose every pass shows its progress on a terminal; `characters` are as many as it has, if known."""

    pieces: Iterable[str]
    description: str
    characters: int | None = None

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces."""
        total, unit = self.characters, " characters"
        with tqdm(total=total, desc=self.description, unit=unit, unit_scale=True, disable=None) as bar:
            for piece in self.pieces:
                yield piece
                bar.update(len(piece))


def split_documents(groups: dict[str, list[str]], config: TextConfig) -> Texts:
    """Split text into train, validation and test, by character share.

    Several groups of documents are shuffled by seed and stay whole, so that no document, and no two documents of one
    group, stand in two splits. A single document is cut by position, training text first.
    """
    shares = {"validation": config.validation, "test": config.test}
    if len(groups) == 1:
        text = "\n\n".join(next(iter(groups.values())))
        first = int(len(text) * (1 - config.validation - config.test))
        second = int(len(text) * (1 - config.test))
        cut = {"train": text[:first], "validation": text[first:second], "test": text[second:]}
        return Texts({name: [part] for name, part in cut.items() if part})
    import torch  # here, because it takes half a gigabyte of memory, and text_file gets by without

    names = sorted(groups)
    order = torch.randperm(len(names), generator=make_generator(config.split_seed, "documents"))
    texts = ["\n\n".join(groups[names[index]]) for index in order.tolist()]
    total = sum(len(text) for text in texts)
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for text in texts:
        short = [name for name in shares if sum(map(len, parts[name])) + len(text) <= shares[name] * total]
        parts[short[0] if short else "train"].append(text)
    return Texts({name: ["\n\n".join(part)] for name, part in parts.items() if part})


def write(folder: Path, texts: Texts, config: TextConfig) -> dict[str, Any]:
    """Write each split's tokens, and the tokenizer made from the training split; return the manifest.

    The text is read in pieces, several times, and never held as a whole.

    Raises:
        ArtifactError: if a split that the config asks for has no text to predict.
    """
    entries = {name: survey(Watched(pieces, f"survey {name}")) for name, pieces in texts.splits.items()}
    wanted = [name for name in SPLITS if name != "test" or config.test]
    if short := [name for name in wanted if name not in entries or entries[name]["characters"] < SHORTEST]:
        found = ", ".join(f"{name} {entries[name]['characters'] if name in entries else 0}" for name in wanted)
        msg = (
            f"{folder}: the {short[0]} split needs at least {SHORTEST} characters, one to predict from another; got "
            f"{found}; bring more text or more documents, or change validation, test or split_seed"
        )
        raise ArtifactError(msg)
    sizes = {name: entry["characters"] for name, entry in entries.items()}
    train = texts.splits["train"]
    tokenizer = train_tokenizer(Watched(train, "learn tokens", sizes["train"]), config.tokenizer, config.vocabulary)
    artifacts.write_json(folder / "tokenizer.json", tokenizer.state())
    for name, pieces in texts.splits.items():
        path = folder / f"{name}.safetensors"
        entries[name]["tokens"] = tokenize(path, Watched(pieces, f"tokenize {name}", sizes[name]), tokenizer)
        entries[name]["sha256"] = artifacts.digest(path)
    for name, overlaps in measure_overlaps(texts, sizes).items():
        entries[name] |= overlaps
    report = write_reports(folder, texts.files)
    spec = TextSpec(vocabulary=tokenizer.size).model_dump()
    return {"spec": spec, "known": dict(texts.known), "encoding": texts.encoding, "splits": entries, **report}


def measure_overlaps(texts: Texts, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return what share of each held-out split stands word for word in the splits that come before it."""
    pieces = {name: Watched(texts.splits[name], f"overlap with {name}", sizes[name]) for name in texts.splits}
    windows = {
        name: sample_windows(Watched(texts.splits[name], f"sample {name}", size), size)
        for name, size in sizes.items()
        if name != "train"
    }
    found: dict[str, dict[str, Any]] = {
        name: {"overlap_with_train": share, "overlap_window": WINDOW, "overlap_windows": len(windows[name])}
        for name, share in measure_overlap(windows, pieces["train"]).items()
    }
    if "test" in windows:
        share = measure_overlap({"test": windows["test"]}, pieces["validation"])["test"]
        found["test"]["overlap_with_validation"] = share
    return found


def survey(pieces: Iterable[str]) -> dict[str, Any]:
    """Count the characters, the bytes of UTF-8, the words and the distinct characters of a text."""

    def count(piece: str) -> tuple[int, int, int, set[str]]:
        return len(piece), count_bytes(piece), count_words(piece), distinct_characters(piece)

    characters = size = words = 0
    distinct: set[str] = set()
    for found in map_pieces(count, cut(pieces)):
        characters += found[0]
        size += found[1]
        words += found[2]
        distinct |= found[3]
    return {"characters": characters, "bytes": size, "words": words, "distinct_characters": len(distinct)}


def count_words(text: str) -> int:
    """Count the words between blanks, and the line ends, as word-level papers do: there, <eos> ends a line."""
    codes = code_points(text)
    blank = np.concatenate([[True], codes <= ord(" ")])
    return int(np.count_nonzero(blank[:-1] & ~blank[1:]) + np.count_nonzero(codes == ord("\n")))


def count_bytes(text: str) -> int:
    """Return the length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def tokenize(path: Path, pieces: Iterable[str], tokenizer: TextTokenizer) -> int:
    """Write a text's tokens, int32 (N,); return N.

    The tokens are those of the whole text, and the same for any number of threads; see `cut` for the one exception.
    """
    count = 0
    with artifacts.append_tensor(path, "tokens") as append:
        for tokens in map_pieces(tokenizer.encode, cut(pieces)):
            append(tokens)
            count += len(tokens)
    return count
