"""Draws samples from a trained model into a folder: one file each, a sheet of all, and a table.

    pipeline generate gan                                  # a run of this project
    pipeline generate models:/gan@latest --count 100       # or models:/<id>, runs:/<run id>, or a folder
    pipeline generate gan --label all                      # each class in turn, --count of each
    pipeline generate gan --label 3 --interpolate          # pictures on the way from each seed to the next
    pipeline generate transformer --prompt "Parameters" --temperature 0.5
    pipeline generate flow_matching --complete pictures/   # keeps the upper half of each picture, and draws the rest
    pipeline generate --read generated/00000.png           # what a file says of its origin

The command uses the model's weights and config, and none of the code that came with it. The seeds are --seed and the
numbers after it. Equal seeds give equal samples, the same ones as `model.predict` of MLflow. Each file says that a
model made it, and which: a PNG or a WAV by itself, others in origin.json.
"""

import argparse
import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm  # type: ignore[import-untyped]

import pipeline
from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser, read_count
from pipeline.formats import provenance
from pipeline.history import choices
from pipeline.kinds import Exhibit

ALL = "all"
PICTURE = ".png"
SOURCES = (provenance.GENERATED, provenance.COMPOSITE)  # of a sample, and of a completion
STEPS = 8  # pictures on the way from one seed to the next
SOUND = ".wav"


class Sample(NamedTuple):
    """A drawn value: the name of its file, its class, its seed, or its place between two; and what it completes."""

    name: str
    value: Any
    label: str
    seed: str
    completed: str = ""  # name of a file
    original: Any = None


def main(arguments: list[str]) -> int:
    """Load the model, and write its samples; or print the origin of a file."""
    options = parse(arguments)
    if options.read:
        for key, value in provenance.read(options.read).items():
            print(f"{key}: {value if value.isprintable() else json.dumps(value)}")
        return 0
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        msg = f"{options.out}: expected a new or an empty folder, so that no file is overwritten; --out names another"
        raise ArtifactError(msg)
    model = pipeline.load(options.address)
    labels = find_labels(model, options.label)
    draw, total = draw_each, options.count
    if options.interpolate:
        draw, total = walk, (options.count - 1) * options.interpolate + 1
    if options.complete:
        names, values = model.read_files(options.complete)
        draw, total = partial(complete, names=names, values=values), options.count * len(names)
    # All are drawn before the first is written: what cannot be drawn leaves no folder behind.
    samples = list(tqdm(draw(model, labels, options), "generate", total * len(labels), unit=" samples", disable=None))
    is_new = not options.out.exists()
    try:
        write(options.out, model, samples, options)
    except BaseException:
        remove(options.out, is_new)
        raise
    print(f"{options.address}: {len(samples)} samples in {options.out}")
    return 0


def remove(folder: Path, is_new: bool) -> None:
    """Leave no part of what could not be written, such as on a full disk; the folder was empty, or new."""
    for path in folder.glob("*"):
        path.unlink()
    if is_new and folder.exists():
        folder.rmdir()


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = make_parser("generate", __doc__)
    parser.add_argument("address", nargs="?", help="a run, a folder, models:/... or runs:/...")
    parser.add_argument("--count", type=read_count, help="number of samples; default: 16, or 1 of each picture")
    parser.add_argument("--seed", type=_read_seed, default=0, help="seed of the first sample; default: 0")
    parser.add_argument("--label", metavar="NAME", help=f"class of all samples, its name or number, or {ALL}")
    parser.add_argument("--prompt", help="text that the samples continue")
    parser.add_argument("--temperature", type=_read_temperature, help="divides the logits; 0 takes the likeliest token")
    parser.add_argument(
        "--interpolate",
        metavar="STEPS",
        type=read_count,
        nargs="?",
        const=STEPS,
        help=f"walk from the sample of each seed to that of the next; pictures per seed, {STEPS} if not said",
    )
    parser.add_argument(
        "--complete",
        metavar="PATH",
        type=Path,
        help="keep the upper half of a picture, or of each one in a folder, and draw the rest",
    )
    parser.add_argument("--out", type=Path, default=Path("generated"), help="new folder; default: generated")
    parser.add_argument("--read", type=Path, metavar="FILE", help="print what a generated file says of its origin")
    options = parser.parse_args(arguments)
    if bool(options.address) == bool(options.read):
        parser.error("expected the address of a model, or --read and a file")
    said = [f"--{key}" for key, value in vars(options).items() if value != parser.get_default(key)]
    if options.read and said != ["--read"]:
        parser.error(f"--read: takes no other option, got {', '.join(each for each in said if each != '--read')}")
    options.count = options.count or (1 if options.complete else 16)
    if options.complete and options.interpolate:
        parser.error("--complete: a completion takes no --interpolate")
    if options.interpolate and options.count < 2:
        parser.error("--count: --interpolate needs 2 seeds or more, got 1")
    for option in ("interpolate", "complete"):
        if getattr(options, option) and (options.prompt is not None or options.temperature is not None):
            parser.error(f"--{option}: takes no --prompt and no --temperature")
    return options


def _read_seed(text: str) -> int:
    if not text.isdecimal():
        msg = f"expected a number from 0 on, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _read_temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
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
    known = choices.list_labels(model.loaded, model.classes)
    if not known:
        msg = f"{model.address}: the model is given no class, got --label {label}"
        raise ArtifactError(msg)
    found = list(known) if label == ALL else choices.find_labels(model.loaded, model.classes, label)[:1]
    if not found:
        msg = f"{model.address}: --label: expected {ALL} or one of {', '.join(known.values())}, got {label}"
        raise ArtifactError(msg)
    return [{choices.find_field(model.loaded): value} for value in found]


def draw_each(model: Any, labels: Sequence[dict[str, int]], options: argparse.Namespace) -> Iterator[Sample]:
    """Yield a sample of each class and seed."""
    chosen = _list_chosen(options)
    choices.require_prompt(model.loaded, options.prompt or "", f"{model.address}: --prompt")
    for given in labels:
        for seed in range(options.seed, options.seed + options.count):
            [value] = model.draw([seed], given=given, **chosen)
            name = "-".join([*_name_classes(model, given), f"{seed:05}"])
            yield Sample(name, value, model.name_label(seed, given), str(seed))


def walk(model: Any, labels: Sequence[dict[str, int]], options: argparse.Namespace) -> Iterator[Sample]:
    """Yield the samples on the way from each seed to the next, for each class."""
    seeds, steps = range(options.seed, options.seed + options.count), options.interpolate
    for given in labels:
        label = model.name_label(seeds[0], given)
        for index, value in enumerate(model.walk(seeds, steps, given=given)):
            seed, place = seeds[index // steps], index % steps
            where = f"{seed} to {seed + 1}, {place}/{steps}" if place else str(seed)
            name = "-".join([*_name_classes(model, given), "walk", f"{index:05}"])
            yield Sample(name, value, label, where)


def complete(
    model: Any, labels: Sequence[dict[str, int]], options: argparse.Namespace, names: Sequence[str], values: Any
) -> Iterator[Sample]:
    """Yield completions of the values of files: one of each class, file and seed."""
    for given in labels:
        for index, (file, original) in enumerate(zip(names, values, strict=True)):
            for seed in range(options.seed, options.seed + options.count):
                value = model.complete(original, seed, given=given)
                name = "-".join([*_name_classes(model, given), "complete", f"{index:05}", f"{seed:05}"])
                label = model.name_label(seed, given) if given else ""
                yield Sample(name, value, label, str(seed), file, original)


def _list_chosen(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of samples that the command line names."""
    return {key: getattr(options, key) for key in choices.CHOSEN if getattr(options, key) is not None}


def _name_classes(model: Any, given: dict[str, int]) -> list[str]:
    """Return the parts of a file's name that say what the sample is given, with zeros in front so that they sort."""
    pool = model.loaded.pool.values
    return [f"{field}-{value:0{len(str(int(pool[field].max())))}}" for field, value in given.items()]


def write(folder: Path, model: Any, samples: Sequence[Sample], options: argparse.Namespace) -> None:
    """Write each sample, the sheet, or of a walk the strip and an animation, each with its origin; and samples.csv."""
    kind, about, entries = model.loaded.kind, model.describe_origin(), {}
    chosen = {key: str(value) for key, value in _list_chosen(options).items()}

    def put(exhibit: Any, label: str, seed: str, frames: Sequence[Image.Image] = (), completed: str = "") -> str:
        more = {key: value for key, value in {"label": label, "completed": completed}.items() if value}
        origin, source = {**about, **more, "seed": seed, **chosen}, SOURCES[bool(completed)]
        made = hashlib.sha256(b"".join([exhibit.content, *(frame.tobytes() for frame in frames)])).hexdigest()
        origin[provenance.AIGC] = provenance.make_aigc(about["generator"], f"{about['model_sha256']}/{made}")
        name, content = f"{exhibit.name}{exhibit.suffix}", exhibit.content
        if exhibit.suffix == PICTURE:
            content = provenance.mark(content, origin, frames, source)
        elif exhibit.suffix == SOUND:
            content = provenance.mark_sound(content, origin, source)
        else:
            entries[name] = provenance.describe(content, origin, source)
        artifacts.write_bytes(folder / name, content)
        return name

    rows = [("file", "label", "seed", "index", *(["completed"] if options.complete else []))]
    exhibits = [kind.to_file(sample.name, sample.value, model.loaded) for sample in samples]
    for index, (exhibit, sample) in enumerate(zip(exhibits, samples, strict=True)):
        name = put(exhibit, sample.label, sample.seed, completed=sample.completed)
        rows.append((name, sample.label, sample.seed, str(index), *filter(None, [sample.completed])))
    values = [sample.value for sample in samples]
    many = values if isinstance(values[0], str) else stack(values)
    every = ", ".join(dict.fromkeys(sample.label for sample in samples if sample.label))
    seeds = f"{options.seed} to {options.seed + options.count - 1}"
    if options.interpolate and exhibits[0].suffix == PICTURE:
        pictures = [Image.open(io.BytesIO(exhibit.content)) for exhibit in exhibits]
        put(show_strip(pictures, options.interpolate, options.count), every, seeds)
        put(exhibits[0]._replace(name="walk"), every, seeds, pictures[1:])
    elif options.complete:
        originals = stack([sample.original for sample in samples])
        files = len({sample.completed for sample in samples})
        put(kind.show_completions("sheet", originals, many, model.loaded), every, seeds, completed=f"{files} files")
    else:
        put(kind.show("sheet", many, model.loaded), every, seeds)
        if hasattr(kind, "picture"):
            captions = [sample.label or sample.seed for sample in samples]
            put(kind.picture("sheet", many, model.loaded, captions), every, seeds)
    if entries:
        artifacts.write_json(folder / provenance.SIDECAR, entries)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    artifacts.write_bytes(folder / "samples.csv", table.getvalue().encode("utf-8", "replace"))


def show_strip(pictures: Sequence[Image.Image], steps: int, count: int) -> Exhibit:
    """Show the ways between `count` seeds, one per row with both of its ends."""
    width, height = pictures[0].size
    length = (count - 1) * steps + 1  # of one class
    begins = [row + way * steps for row in range(0, len(pictures), length) for way in range(count - 1)]
    strip = Image.new(pictures[0].mode, (width * (steps + 1), height * len(begins)))
    for row, begin in enumerate(begins):
        for column, picture in enumerate(pictures[begin : begin + steps + 1]):
            strip.paste(picture, (width * column, height * row))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    return Exhibit("strip", PICTURE, buffer.getvalue())


def stack(values: list[Any]) -> Any:
    """Return tensors of equal shape as one."""
    import torch

    return torch.stack(values)
