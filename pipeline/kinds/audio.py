"""Audio: clips of one channel and equal length, int16 (N, T), with labels int64 (N,).

A source's `prepare` returns Clips; the stage `prepare` calls `write`.

Dimensions: N clips, T samples of a clip.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline import artifacts
from pipeline.artifacts import SPLITS, ArtifactError
from pipeline.formats.own_files import FileReport, write_reports
from pipeline.formats.recordings import LOUDEST
from pipeline.formats.wav import encode_wav
from pipeline.kinds import (
    Drawn,
    Exhibit,
    FieldSpec,
    Look,
    draw_one,
    draw_sets,
    dump_fields,
    name_key,
    question_classes,
    question_examples,
    question_files,
)
from pipeline.kinds import labels as class_labels
from pipeline.params import Source
from pipeline.randomness import make_generator

if TYPE_CHECKING:
    from pipeline.batches import Rows

LABELS = "labels"
WITH = (LABELS,)  # kinds of the other fields
PAUSE = 0.25  # seconds between the clips of an exhibit
SHOWN = 20  # clips of an exhibit
COLUMNS, SIDE, CAPTION = 5, 128, 14  # of a picture: spectrograms in a row, and pixels
SECONDS, HOPS = 0.032, 4  # of a spectrogram's window; windows that overlap
LEVELS = 16  # greys of a picture
RANGE = 70  # decibels below the loudest place of a clip that are white
LEAST = 50  # clips that a metric is computed of
SILENCE = 327  # a clip that stays below, 1% of the range, is silent
MOST_CLIPPED = 0.01  # share of a clip's samples that may be as loud as can be
NETWORK = {"width": 8, "steps": 300, "batch_size": 32, "shift": 800}  # keys that suit sound; shift is in samples
# The same, of models; keys that a model lacks are left out.
MODEL = {"flip": False, "augment": [], "full_width": 0, "late_share": 0.0, "shift": 1000}
MODEL |= {"hidden": 128, "dropout": 0.0, "beta": 0.3, "flow_width": 256}
SURVEYED = 500  # clips whose frequencies are looked at
NOTHING = 5e-4  # share of the power that counts as none; filters of resampling leave about that much
NARROW = 0.4  # share of the band that is doubtfully little
MUCH_PADDING = 0.25  # share of a clip that recordings fill, below which padding is doubtful
MUCH_LEFT_OUT = 0.1  # share of the sound
MOST_BROKEN = 0.1  # share of the clips that may be silent or clipped


class Spec(FieldSpec):
    """Samples T of a clip, and its rate in samples per second."""

    kind: Literal["audio"] = "audio"
    samples: int = Field(ge=1)
    rate: int = Field(ge=1)


class AudioConfig(Source):
    """Keys that every audio source shares, so that changing `source` suffices to change the data of a run."""

    KIND: ClassVar = "audio"

    split_seed: int = Field(ge=0, description="seed of the split")
    validation: float = Field(gt=0, lt=1, description="share of the clips in the validation split")
    test: float = Field(gt=0, lt=1, description="share of the clips in the test split")
    samples: int = Field(ge=1, description="samples of each clip")
    rate: int = Field(ge=1000, description="samples per second")


@dataclass(frozen=True)
class Clips:
    """Clips int16 (N, T) and labels int64 (N,) of each split; the name of each class; what recorded the clips.

    names: none of clips without classes, which all have the label 0.
    changes: what was done to the recordings on the way in, such as "resampled from 22050 to 8000 samples per second".
    files: reports of your own files. known: what the source found out about the set that the manifest should carry.
    """

    splits: dict[str, tuple[Tensor, Tensor]]
    names: Sequence[str]
    origin: str
    changes: Sequence[str] = ()
    files: Sequence[FileReport] = ()
    known: Mapping[str, Any] = field(default_factory=dict)


def write(folder: Path, clips: Clips, config: AudioConfig) -> dict[str, Any]:
    """Write each split's clips and labels; return the manifest.

    Raises:
        ArtifactError: if a split is not of clips int16 (N, config.samples) with N labels, or one is silent or clipped.
    """
    entries: dict[str, Any] = {}
    classes = max(1, len(clips.names))
    known: dict[str, set[bytes]] = {}
    for name in SPLITS:
        values, labels = clips.splits[name]
        check(f"{folder} {name}", values, least=1, most=0)
        if values.size(1) != config.samples or len(values) != len(labels):
            shape = (len(labels), config.samples)
            msg = f"{folder} {name}: expected {shape} samples and as many labels, got {tuple(values.shape)}"
            raise ArtifactError(msg)
        path = folder / f"{name}.safetensors"
        artifacts.write_tensors(path, {"clips": values, "labels": labels})
        digests = {blake2b(clip.numpy().tobytes(), digest_size=16).digest() for clip in values}
        entries[name] = {
            "sha256": artifacts.digest(path),
            "count": len(values),
            "shape": list(values.shape),
            "minimum": int(values.min()),
            "maximum": int(values.max()),
            "clipped_samples": int((values.int().abs() >= LOUDEST).sum()),
            "per_class": labels.bincount(minlength=classes).tolist(),
            "duplicates": len(values) - len(digests),
            **{f"shared_with_{other}": len(digests & seen) for other, seen in known.items()},
        }
        known[name] = digests
    fields = make_fields(config.samples, config.rate, classes)
    about: dict[str, Any] = {"classes": list(clips.names), "origin": clips.origin, "changes": list(clips.changes)}
    facts = dict(clips.known) | find_narrow_band(clips.splits["train"][0], config.rate)
    about |= {"known": facts} if facts else {}
    return {"fields": dump_fields(fields), **about, "splits": entries, **write_reports(folder, clips.files)}


def find_narrow_band(clips: Tensor, rate: int) -> dict[str, int]:
    """Return the frequency in Hz below which clips (N, T) have all power but 0.05%, if the band is 40% or less."""
    power = torch.zeros(clips.size(1) // 2 + 1, dtype=torch.float64)
    for place in range(0, len(clips), -(-len(clips) // SURVEYED)):  # one by one: the set may be larger than memory
        power += torch.fft.rfft(clips[place].double()).abs().square()
    above = 1 - power.cumsum(0) / power.sum()
    highest = int((above > NOTHING).sum()) * rate // clips.size(1)
    return {"bandwidth": highest} if highest <= NARROW * rate / 2 else {}


def question_data(data: str, manifest: dict[str, Any], config: AudioConfig) -> list[str]:
    """Return a sentence for everything about a set that is perhaps not what the user meant, with the key to change."""
    found = [*question_files(data, manifest, config), *_question_sound(data, manifest, config)]
    return [*found, *question_examples(data, manifest, config), *question_classes(data, manifest, config)]


def _question_sound(data: str, manifest: dict[str, Any], config: AudioConfig) -> list[str]:
    """Return doubts about your own recordings: their lengths, rates and levels; and of all sets about the band."""
    known = manifest.get("known", {})
    found = []
    clip = config.samples / config.rate
    samples, rate = name_key(data, config, "samples"), name_key(data, config, "rate")
    usual = known.get("seconds", {}).get("95%", clip)
    step = 2 ** round(math.log2(config.rate / 8))  # such lengths can be halved, as models need them
    advice = f"{math.ceil(usual * config.rate / step) * step} would hold 95% of them"
    if usual < MUCH_PADDING * clip:
        found.append(f"{samples}: 95% of the recordings last at most {usual:g} s, a clip {clip:g} s; {advice}")
    left_out = known.get("left_out", {"share": 0, "silent_clips": 0})
    if left_out["share"] > MUCH_LEFT_OUT:
        found.append(f"{samples}: {left_out['share']:.0%} of the sound is left out, a clip lasts {clip:g} s; {advice}")
    if silent := left_out["silent_clips"]:
        found.append(f"{name_key(data, config)}: {silent} clips of long recordings are silent, and not used")
    if moved := known.get("in_two_splits"):
        which = f"{moved} recordings of one split's folder are in another's too, and used there"
        found.append(f"{name_key(data, config)}: {which}")
    if clipped := known.get("clipped"):
        found.append(f"{name_key(data, config)}: {clipped} recordings are clipped in parts")
    rates = {int(each): count for each, count in known.get("rates", {}).items()}
    if low := sum(count for each, count in rates.items() if each < config.rate):
        which = f"{low} of {sum(rates.values())} recordings have fewer samples per second, from {min(rates)} on"
        found.append(f"{rate}: {which}, so they have nothing above {min(rates) / 2:g} Hz")
    elif "bandwidth" in known:
        found.append(f"{rate}: the sound is below {known['bandwidth']} Hz, clips reach up to {config.rate / 2:g} Hz")
    return found


def show_data(folder: Path, manifest: dict[str, Any]) -> Exhibit:
    """Let the first clip of each class in the training split be heard, or the first 20 of clips without classes."""
    split = artifacts.read_tensors(folder / "train.safetensors")
    classes = split["labels"].unique()
    firsts = [int((split["labels"] == label).nonzero()[0]) for label in classes]
    if len(classes) == 1:
        firsts = list(range(min(SHOWN, len(split["labels"]))))
    return _join("sheet", split["clips"][firsts[:SHOWN]], manifest["fields"]["clips"]["rate"])


def make_fields(samples: int, rate: int, classes: int) -> dict[str, FieldSpec]:
    """Return the fields of a set of labelled clips."""
    return {"clips": Spec(samples=samples, rate=rate), "labels": class_labels.Spec(classes=classes)}


def examples(split: dict[str, Tensor], config: Any, seed: int) -> Rows:
    """Return the training examples of a split."""
    from pipeline.batches import Rows  # Lightning takes seconds to import, and preparing data does not need it

    del config, seed
    return Rows(split)


def require_split(data: str, source: Source, split: str, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a prepared split with fewer clips than metrics compare.

    Raises:
        ArtifactError: with the key to change.
    """
    count, total = splits[split]["count"], sum(entry["count"] for entry in splits.values())
    if count < LEAST:
        key, advice = f"data.{data}", f"bring {math.ceil(LEAST * total / max(count, 1)) - total} clips more"
        if hasattr(source, split) and total >= 4 * LEAST:  # else one split or another stays too small
            key, advice = f"data.{data}.{split}", f"{1.5 * LEAST / total:.2g} would do, or {advice}"
        msg = f"{key}: the {split} split has {count} of {total} clips, metrics compare {LEAST} or more; {advice}"
        raise ArtifactError(msg)


def check(name: str, clips: Tensor, least: int = LEAST, most: float = MOST_BROKEN) -> None:
    """Refuse clips that would give a plausible number for nonsense.

    Args:
        name: of the clips, for the message.
        clips: int16 (N, T).
        least: clips that are enough.
        most: share of the clips that may be silent or clipped.

    Raises:
        ArtifactError: if the clips are not int16 or not (N, T), are too few, or too many are silent or clipped.
    """
    if clips.dtype != torch.int16:
        msg = f"{name}: expected int16 clips, got {clips.dtype} in [{float(clips.min()):.3g}, {float(clips.max()):.3g}]"
        raise ArtifactError(msg)
    if clips.ndim != 2:
        msg = f"{name}: expected clips (N, T), got {tuple(clips.shape)}"
        raise ArtifactError(msg)
    if len(clips) < least:
        msg = f"{name}: {len(clips)} clips are too few, expected {least} or more"
        raise ArtifactError(msg)
    for problem, broken in (("silent", is_silent(clips)), ("clipped", is_clipped(clips))):
        if float(broken.double().mean()) > most:
            which = broken.nonzero().flatten().tolist()
            msg = f"{name}: {len(which)} of {len(clips)} clips are {problem}, the first is clip {which[0]}"
            raise ArtifactError(msg)


def is_silent(clips: Tensor) -> Tensor:
    """Return whether each clip (N, T) stays below 1% of the range, bool (N,)."""
    return clips.int().abs().amax(dim=1) < SILENCE


def is_clipped(clips: Tensor) -> Tensor:
    """Return whether more than 1% of the samples of each clip (N, T) are as loud as can be, bool (N,)."""
    return (clips.int().abs() >= LOUDEST).double().mean(dim=1) > MOST_CLIPPED


def show(name: str, clips: Tensor, loaded: Any) -> Exhibit:
    """Show clips int16 (N, T) as one WAV, one after the other, with a quarter of a second of silence after each."""
    return _join(name, clips, _find_rate(loaded))


def _join(name: str, clips: Tensor, rate: int) -> Exhibit:
    return Exhibit(name, ".wav", encode_wav(F.pad(clips, (0, round(PAUSE * rate))).flatten().numpy(), rate))


def picture(name: str, clips: Tensor, loaded: Any, captions: Sequence[str] = ()) -> Exhibit:
    """Show clips int16 (N, T) as one PNG of spectrograms, with captions below: see draw_spectrograms."""
    return draw_spectrograms(name, clips, _find_rate(loaded), captions)


def draw_spectrograms(name: str, clips: Tensor, rate: int, captions: Sequence[str] = ()) -> Exhibit:
    """Draw a grid of spectrograms of clips int16 (N, T), time to the right and frequency up to half the rate.

    The darker, the louder, in decibels: the loudest place of a clip is black, and what is 70 dB below is white.
    """
    from PIL import Image, ImageDraw

    size = min(2 ** round(math.log2(SECONDS * rate)), clips.size(1))
    spectrum = torch.stft(
        clips.float(), size, max(1, size // HOPS), window=torch.hann_window(size), center=False, return_complex=True
    )
    decibels = 20 * spectrum.abs().clamp(min=1).log10()  # of one unit of 16 bits
    below = decibels.amax(dim=(1, 2), keepdim=True) - decibels  # (N, F, S)
    grey = (255 * below / RANGE).clamp(max=255).byte().flip(1).numpy()
    columns, high = min(COLUMNS, len(clips)), SIDE + (CAPTION if captions else 0)
    grid = Image.new("L", ((SIDE + 2) * columns, (high + 2) * math.ceil(len(clips) / columns)), "lightgrey")
    draw = ImageDraw.Draw(grid)
    for index, values in enumerate(grey):
        left, top = (SIDE + 2) * (index % columns), (high + 2) * (index // columns)
        grid.paste(Image.fromarray(values).resize((SIDE, SIDE)), (left, top))
        if captions:
            text = captions[index].encode("unicode_escape").decode()  # the font has few letters
            draw.text((left + 2, top + SIDE + 1), text[:20], fill="black")
    buffer = io.BytesIO()
    grid.quantize(LEVELS).save(buffer, "PNG", optimize=True)  # less than half of the bytes
    return Exhibit(name, ".png", buffer.getvalue())


def to_file(name: str, clip: Tensor, loaded: Any) -> Exhibit:
    """Return one clip int16 (T,) as WAV."""
    return Exhibit(name, ".wav", encode_wav(clip.numpy(), _find_rate(loaded)))


def encode(loaded: Any, generator: torch.Generator, sampling: Any) -> str:
    """Draw one clip for the served model: WAV as base64."""
    return base64.b64encode(to_file("", draw_one(loaded, generator, sampling), loaded).content).decode()


def _find_rate(loaded: Any) -> int:
    rate: int = loaded.fields[loaded.model.makes].rate
    return rate


def look(loaded: Any, held_out: dict[str, Tensor], manifest: dict[str, Any], seed: int, sampling: Any) -> Look:
    """Let 20 samples be heard and seen, class by class; measure how many are silent."""
    del held_out, sampling
    generator = make_generator(seed, "preview", device=loaded.model.device)
    given = loaded.pool.draw(SHOWN, generator)
    samples = loaded.sample(SHOWN, generator, given)
    values = {"silent_share": float(is_silent(samples).double().mean())}
    return Look(_show_both("samples", samples, given.get(LABELS), loaded, manifest), values)


def _show_both(
    name: str, clips: Tensor, labels: Tensor | None, loaded: Any, manifest: Mapping[str, Any]
) -> list[Exhibit]:
    """Show clips (N, T) as sound and as a picture; those with labels (N,) class by class, with its name."""
    captions: list[str] = []
    if labels is not None:
        order = labels.argsort(stable=True)
        names = manifest.get("classes") or [str(label) for label in range(int(labels.max()) + 1)]
        clips, captions = clips[order], [names[label] for label in labels[order].tolist()]
    return [show(name, clips, loaded), picture(name, clips, loaded, captions)]


def find_alarms(newest: dict[str, tuple[int, float]], manifest: dict[str, Any]) -> list[str]:
    """Return a sentence if more than half of the newest preview is silent."""
    del manifest
    step, share = newest.get("silent_share", (0, 0.0))
    return [f"step {step}: {share:.0%} of the samples are silent"] if share > 0.5 else []


def find_silent_alarms(held_out: dict[str, Tensor], manifest: dict[str, Any]) -> list[str]:
    """Return nothing: a preview always has enough clips."""
    del held_out, manifest
    return []


def draw(loaded: Any, sampling: Any, seed: int, manifest: dict[str, Any], read: Callable[[str], Any]) -> Drawn:
    """Draw as many clips as the test and training splits can be compared with; the first ones are heard and seen.

    Files: generated (sets "0", "1", ... of int16 (N, T)), and what they were given.
    """
    del read
    count = min(sampling.count, *(manifest["splits"][split]["count"] for split in ("test", "train")))
    files = draw_sets(loaded, seed, count, sampling.sets)
    given = files.get(f"given_{LABELS}", {}).get("0")
    labels = None if given is None else given[:SHOWN]
    return Drawn(files, _show_both("samples", files["generated"]["0"][:SHOWN], labels, loaded, manifest))
