"""Draws samples from a trained model into a folder: one file each, and a sheet of all.

    pipeline generate gan                                  # a run of this project
    pipeline generate models:/gan@latest --count 100       # or models:/<id>, runs:/<run id>, or a folder
    pipeline generate gan --label all                      # each class in turn, --count of each
    pipeline generate transformer --prompt "Parameters" --temperature 0.5

The command uses the model's weights and config, and none of the code that came with it. The seeds are --seed and the
numbers after it. Equal seeds give equal samples, the same ones as `model.predict` of MLflow.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import pipeline
from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser

ALL = "all"


def main(arguments: list[str]) -> int:
    """Load the model, and write its samples."""
    options = parse(arguments)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        msg = f"{options.out}: expected a new or an empty folder, so that no file is overwritten; --out names another"
        raise ArtifactError(msg)
    model = pipeline.load(options.address)
    chosen = {key: getattr(options, key) for key in ("prompt", "temperature") if getattr(options, key) is not None}
    seeds = range(options.seed, options.seed + options.count)
    names, values = [], []
    for label in find_labels(model, options.label):
        values += model.draw(seeds, given=label, **chosen)
        names += ["-".join([*(f"{key}-{value}" for key, value in label.items()), f"{seed:05}"]) for seed in seeds]
    kind = model.loaded.kind
    many = values if isinstance(values[0], str) else stack(values)
    exhibits = [kind.to_file(name, value, model.loaded) for name, value in zip(names, values, strict=True)]
    for exhibit in [*exhibits, kind.show("sheet", many, model.loaded)]:
        artifacts.write_bytes(options.out / f"{exhibit.name}{exhibit.suffix}", exhibit.content)
    print(f"{options.address}: {len(exhibits)} samples in {options.out}")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = make_parser("generate", __doc__)
    parser.add_argument("address", help="a run, a folder, models:/... or runs:/...")
    parser.add_argument("--count", type=_read_count, default=16, help="number of samples; default: 16")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first sample; default: 0")
    parser.add_argument("--label", metavar="NAME", help=f"class of all samples, its name or number, or {ALL}")
    parser.add_argument("--prompt", help="text that the samples continue")
    parser.add_argument("--temperature", type=_read_temperature, help="divides the logits; 0 takes the likeliest token")
    parser.add_argument("--out", type=Path, default=Path("generated"), help="new folder; default: generated")
    return parser.parse_args(arguments)


def _read_count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        msg = f"expected a number of samples from 1 on, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _read_temperature(text: str) -> float:
    value = float(text)
    if not (0 <= value < math.inf):
        msg = f"expected 0 or a positive number, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value


def find_labels(model: Any, label: str | None) -> list[dict[str, int]]:
    """Return what the samples are to be given, for each of their groups: nothing, one class, or each class in turn.

    Raises:
        ArtifactError: if the model is given no class, or not this one.
    """
    if label is None:
        return [{}]
    pool = {name: values.tolist() for name, values in model.loaded.pool.values.items()}
    field = next((name for name in model.loaded.model.given if name in pool), "")
    if not field:
        msg = f"{model.address}: the model is given no class, got --label {label}"
        raise ArtifactError(msg)
    known = pool[field]
    if label == ALL:
        return [{field: value} for value in known]
    names = dict(enumerate(model.read_classes()))
    found = [value for value in known if label in {str(value), names.get(value)}]
    if not found:
        expected = ", ".join(names.get(value, str(value)) for value in known)
        msg = f"{model.address}: --label: expected {ALL} or one of {expected}, got {label}"
        raise ArtifactError(msg)
    return [{field: found[0]}]


def stack(values: list[Any]) -> Any:
    """Return tensors of equal shape as one."""
    import torch

    return torch.stack(values)
