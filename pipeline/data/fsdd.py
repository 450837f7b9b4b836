"""fsdd: the Free Spoken Digit Dataset 1.0.10, 3,000 recordings of the words zero to nine by six speakers at 8 kHz.

The official test split has the recordings 0 to 4 of each word and speaker, so all six speakers are in both splits.
`held_out_speaker` makes a speaker's 500 recordings the test split instead, whom no training hears. The validation split
is taken from the rest: recordings of one speaker with one number as a whole, or at least one whole speaker if one is
held out. `test` is ignored. A recording that is longer than a clip is cut to its loudest part.

`fetch` writes the recordings of the archive as files. The bytes of an archive of GitHub may change, so its content is
hashed.
"""

import re
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.formats.archives import read_members
from pipeline.formats.download import Source, fetch_archive
from pipeline.formats.recordings import centre, describe_changes, find_loudest, resample, scale
from pipeline.formats.wav import read_wav
from pipeline.kinds import FieldSpec
from pipeline.kinds.audio import AudioConfig, Clips, make_fields
from pipeline.randomness import make_generator

LICENCE = "CC BY-SA 4.0: Free Spoken Digit Dataset by Zohar Jackson and others, doi:10.5281/zenodo.1342401"
SHAPED_BY = ("samples", "rate")
FILE = "fsdd-1.0.10-recordings.zip"
SHA256 = "1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959"  # of the content: see `measure`
ADDRESSES = (
    "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip",
    "https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/zip/refs/tags/v1.0.10",
)
LIMIT = 1 << 27  # bytes; the recordings have 21 MB
NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]+)\.wav")  # word, speaker, number
FOLDER = "recordings/"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
RATE = 8000  # samples per second
NUMBERS = 50  # recordings of each word by each speaker
OFFICIAL = 5  # of them are in the official test split, the first


class Config(AudioConfig):
    """How the recordings are split, and the form of the clips."""

    source: Literal["fsdd"]
    held_out_speaker: Literal["", "george", "jackson", "lucas", "nicolas", "theo", "yweweler"] = Field(
        "", description="speaker whose recordings are the test split; none: the official split, with all speakers"
    )


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the fields of the clips."""
    return make_fields(config.samples, config.rate, len(WORDS))


def fetch(folder: Path, config: Config) -> None:
    """Download the archive, and write its recordings, <word>_<speaker>_<number>.wav."""
    del config
    fetch_archive("fsdd", Source(FILE, SHA256, ADDRESSES, limit=LIMIT), measure, folder)
    for name, content in read_recordings(folder / FILE).items():
        artifacts.write_bytes(folder / name, content)
    (folder / FILE).unlink()


def read_recordings(archive: Path) -> dict[str, bytes]:
    """Return the recordings of an archive of the data set by their names, which are safe; its other files are skipped.

    Raises:
        ArtifactError: if the archive is refused or broken.
    """
    members = read_members(archive, LIMIT)
    places = ((member.name.rpartition(FOLDER)[2], member.blocks) for member in members if FOLDER in member.name)
    return {name: b"".join(blocks) for name, blocks in places if NAME.fullmatch(name)}


def measure(archive: Path) -> str:
    """Return the SHA-256 of the list of an archive's recordings: a line `<SHA-256>  <name>` for each, by name."""
    lines = [f"{sha256(content).hexdigest()}  {name}\n" for name, content in sorted(read_recordings(archive).items())]
    return sha256("".join(lines).encode()).hexdigest()


def prepare(raw: Path, config: Config) -> Clips:
    """Read the recordings, bring them to one rate and length, and split them.

    Raises:
        ArtifactError: if a file is missing or broken, or a split would be empty.
    """
    clips, longer = [], 0
    keys = [(word, speaker, number) for word in range(10) for speaker in SPEAKERS for number in range(NUMBERS)]
    for word, speaker, number in keys:
        recording = _read(raw / f"{word}_{speaker}_{number}.wav", config)
        longer += len(recording) > config.samples
        clips.append(torch.from_numpy(centre(scale(find_loudest(recording, config.samples)), config.samples)))
    places = choose_splits(raw.name, config)
    rows: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for row, (_, speaker, number) in enumerate(keys):
        rows[places[speaker, number]].append(row)
    values, labels = torch.stack(clips), torch.tensor([word for word, _, _ in keys])
    splits: dict[str, tuple[Tensor, Tensor]] = {name: (values[own], labels[own]) for name, own in rows.items()}
    changes = [f"{longer} recordings longer than {config.samples} samples cut to their loudest part"] if longer else []
    changes = [*changes, *describe_changes(config.samples)]
    if config.rate != RATE:
        changes.insert(0, f"resampled from {RATE} to {config.rate} samples per second")
    return Clips(splits, WORDS, LICENCE, changes)


def choose_splits(data: str, config: Config) -> dict[tuple[str, int], str]:
    """Return the split of each speaker's recordings of one number, which are ten words.

    Raises:
        ArtifactError: if no recording is left for the training split or the validation split.
    """
    numbers = [(speaker, number) for speaker in SPEAKERS for number in range(NUMBERS)]
    if speaker := config.held_out_speaker:
        splits = {each: "test" for each in numbers if each[0] == speaker}
        rest = [[(each, number) for number in range(NUMBERS)] for each in SPEAKERS if each != speaker]
        count = max(1, round(config.validation * len(rest)))
    else:
        splits = {each: "test" for each in numbers if each[1] < OFFICIAL}
        rest = [[each] for each in numbers if each not in splits]
        count = round(config.validation * len(rest))
    if not 0 < count < len(rest):
        what = "speakers" if config.held_out_speaker else "groups of recordings"
        split = "the training split" if count else "the validation split"
        msg = f"data.{data}.validation: {config.validation:g} of {len(rest)} {what} leaves none for {split}"
        raise ArtifactError(msg)
    order = torch.randperm(len(rest), generator=make_generator(config.split_seed, "validation")).tolist()
    for place, group in enumerate(order):
        splits |= dict.fromkeys(rest[group], "validation" if place < count else "train")
    return splits


def _read(path: Path, config: Config) -> NDArray[np.float64]:
    samples, rate = read_wav(path)
    if rate != RATE:
        msg = f"{path}: expected {RATE} samples per second, found {rate}"
        raise ArtifactError(msg)
    return resample(samples.astype(np.float64), rate, config.rate)
