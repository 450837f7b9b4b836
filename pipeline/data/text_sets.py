"""Text sets: what every text source shares, and how its text is split, tokenised and written.

A source's `prepare` returns Texts; the stage `prepare` calls `write`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator

from pipeline import artifacts
from pipeline.artifacts import TextSpec
from pipeline.data.own_files import FileReport, write_reports
from pipeline.params import Section
from pipeline.randomness import make_generator
from pipeline.tokenization import Kind, train_tokenizer


class TextConfig(Section):
    """Keys that every text source shares, so that `source` alone changes the data of a run."""

    KIND: ClassVar = "text"

    path: str = Field(min_length=1, description="file, folder or glob of one's own, for text_file; others ignore it")
    split_seed: int = Field(ge=0, description="seed that shuffles the documents; one document is split by position")
    validation: float = Field(gt=0, lt=1, description="share of the characters")
    test: float = Field(ge=0, lt=1, description="share of the characters; 0 for no test split (nanoGPT's protocol)")
    tokenizer: Kind = Field(description="what a token is")
    vocabulary: int = Field(ge=257, description="tokens of the BPE tokenizer; the others have as many as they need")

    @model_validator(mode="after")
    def _check(self) -> "TextConfig":
        if self.validation + self.test >= 1:
            msg = f"validation + test must stay below 1, got {self.validation} + {self.test}"
            raise ValueError(msg)
        return self


@dataclass(frozen=True)
class Texts:
    """The text of each split, by its name, in pieces of about a megabyte that can be read again and again.

    A split without text is absent. `known` holds facts about the source that the manifest should carry, such as its
    entropy rate; `files` the reports of one's own files.
    """

    splits: Mapping[str, Iterable[str]]
    known: Mapping[str, float] = field(default_factory=dict)
    files: Sequence[FileReport] = ()


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
    """Write each split's tokens, and the tokenizer made from the training split; return the manifest."""
    tokenizer = train_tokenizer("".join(texts.splits["train"]), config.tokenizer, config.vocabulary)
    artifacts.write_json(folder / "tokenizer.json", tokenizer.state())
    entries = {}
    for name, pieces in texts.splits.items():
        text = "".join(pieces)
        path = folder / f"{name}.safetensors"
        tokens = torch.tensor(tokenizer.encode(text), dtype=torch.int32)
        artifacts.write_tensors(path, {"tokens": tokens})
        entries[name] = {
            "sha256": artifacts.digest(path),
            "tokens": len(tokens),
            "characters": len(text),
            "bytes": len(text.encode("utf-8")),
            "distinct_characters": len(set(text)),
        }
    report = write_reports(folder, texts.files)
    spec = TextSpec(vocabulary=tokenizer.size).model_dump()
    return {"spec": spec, "known": dict(texts.known), "splits": entries, **report}
