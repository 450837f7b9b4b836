"""What a request for samples may choose, from `pipeline generate` or the served model: class, seeds and text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.formats.tokenizers import name_character
from pipeline.randomness import make_generator
from pipeline.weights import Loaded

OPTIONS = {"label": "", "count": 1, "seed": 0, "details": False}  # of the served model; without classes it has no label
CHOSEN = ("prompt", "temperature")  # settings of a sample, where its kind has them
MOST = 1000  # samples of each seed of a request
SHOWN = 200  # characters that a message lists
LINE_END = "\n"


def require_range(count: int, temperature: float) -> None:
    """Refuse options that are out of range.

    Raises:
        ArtifactError: naming the option.
    """
    if not 1 <= count <= MOST:
        msg = f"count: expected 1 to {MOST}, got {count}"
        raise ArtifactError(msg)
    if not 0 <= temperature < math.inf:
        msg = f"temperature: expected 0 or a positive number, got {temperature}"
        raise ArtifactError(msg)


def require_prompt(loaded: Loaded, prompt: str, key: str) -> None:
    """Refuse a prompt with characters that the model has not learnt to read, and say which it has.

    Raises:
        ArtifactError: naming the key.
    """
    tokenizer = loaded.tokenizer
    if tokenizer is None or not (unknown := [each for each in dict.fromkeys(prompt) if not tokenizer.knows(each)]):
        return
    if prompt == LINE_END:  # goes with any text
        return
    known = "".join(each for each in tokenizer.characters if tokenizer.knows(each))
    rest = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    got = ", ".join(map(name_character, unknown[:5])) + ", ..." * (len(unknown) > 5)
    msg = f"{key}: expected characters of the training text, {known[:SHOWN]!r}{rest}; got {got}"
    raise ArtifactError(msg)


def list_classes(about: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes that a run was trained with, by its record.

    They are those of its data set in this project, if that is here and still the one of the record.
    """
    data = about.get("config", {}).get("run", {}).get("data")
    if not isinstance(data, str) or not (artifacts.PREPARED / data / "manifest.json").exists():
        return []
    manifest = artifacts.read_manifest(data)
    learnt = [each.get("sha256") for each in about.get("datasets", ()) if each.get("context") == "train"]
    here = ((manifest.get("splits") or {}).get("train") or {}).get("sha256")
    return list(manifest.get("classes") or ()) if learnt == [here] else []


def start(loaded: Loaded, seed: int) -> torch.Generator:
    """Return the generator of the sample of a seed."""
    return make_generator(seed, "serve", device=loaded.model.device)


def find_field(loaded: Loaded) -> str:
    """Return the given field that has a number for each class; empty if the model is given none."""
    values = loaded.pool.values
    return next((name for name in loaded.model.given if name in values and values[name].ndim == 1), "")


def list_labels(loaded: Loaded, classes: Sequence[str]) -> dict[int, str]:
    """Return the classes that a model is given, each with its name, or its number without names."""
    known = loaded.pool.values[field].tolist() if (field := find_field(loaded)) else []
    return {label: classes[label] if label < len(classes) else str(label) for label in known}


def find_labels(loaded: Loaded, classes: Sequence[str], label: str) -> list[int]:
    """Return the class of that name or number, which a name comes before; empty if there is none."""
    known = list_labels(loaded, classes)
    return [each for each, name in known.items() if name == label] or [each for each in known if str(each) == label]


def name_drawn(loaded: Loaded, classes: Sequence[str], seed: int) -> str:
    """Return the class that the sample of a seed is given; empty without classes."""
    if not (field := find_field(loaded)):
        return ""
    return list_labels(loaded, classes)[int(loaded.pool.draw(1, start(loaded, seed))[field])]
