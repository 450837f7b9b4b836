"""Splits and configs that the data sources share.

A source's `prepare` returns ImageSplits or Texts; the stage `prepare` writes them.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.params import Section
from pipeline.randomness import make_generator
from pipeline.tokenization import Kind


class ImageConfig(Section):
    """Keys that every image source shares, so that `source` alone changes the data of a run."""

    KIND: ClassVar = "images"
    split_seed: int = Field(ge=0, description="seed of the stratified split")
    validation: float = Field(gt=0, lt=1, description="share of the images outside the test split")


class TextConfig(Section):
    """Keys that every text source shares."""

    KIND: ClassVar = "text"
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
class ImageSplits:
    """Images uint8 (N, C, H, W) and labels int64 (N,) of each split; `names` of the classes."""

    splits: dict[str, tuple[Tensor, Tensor]]
    classes: int


@dataclass(frozen=True)
class Texts:
    """The text of each split, by its name; a split without text is absent."""

    splits: dict[str, str]


def split_stratified(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split indices of labels int64 (N,) into (rest, part): each class gives its `share`, rounded, to the part."""
    rest, part = [], []
    for label in labels.unique(sorted=True):
        indices = (labels == label).nonzero().squeeze(1)
        indices = indices[torch.randperm(len(indices), generator=generator)]
        count = round(share * len(indices))
        part.append(indices[:count])
        rest.append(indices[count:])
    return torch.cat(rest).sort().values, torch.cat(part).sort().values


def read_digits(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], config: ImageConfig
) -> ImageSplits:
    """Split off the validation images, and turn uint8 arrays (N, 28, 28) and labels (N,) into tensors."""
    images, labels = (torch.from_numpy(np.ascontiguousarray(array)) for array in train)
    labels = labels.long()
    rest, part = split_stratified(labels, config.validation, make_generator(config.split_seed, "validation"))
    held_out = torch.from_numpy(np.ascontiguousarray(test[0])), torch.from_numpy(np.ascontiguousarray(test[1])).long()
    return ImageSplits(
        {
            "train": (images[rest].unsqueeze(1), labels[rest]),
            "validation": (images[part].unsqueeze(1), labels[part]),
            "test": (held_out[0].unsqueeze(1), held_out[1]),
        },
        classes=10,
    )


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
        return Texts({name: part for name, part in cut.items() if part})
    names = sorted(groups)
    order = torch.randperm(len(names), generator=make_generator(config.split_seed, "documents"))
    texts = ["\n\n".join(groups[names[index]]) for index in order.tolist()]
    total = sum(len(text) for text in texts)
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for text in texts:
        short = [name for name in shares if sum(map(len, parts[name])) + len(text) <= shares[name] * total]
        parts[short[0] if short else "train"].append(text)
    return Texts({name: "\n\n".join(part) for name, part in parts.items() if part})
