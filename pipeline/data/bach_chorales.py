"""bach_chorales: chorales of J. S. Bach from the scores that the package music21 carries; needs no network.

361 pieces in four voices on a grid of sixteenth notes, in the form of jsb_chorales. `fetch` reads the MusicXML without
importing music21, and writes the notes of each piece, or the reason why it is left out. Repeats are played, as in
jsb_chorales; fermatas and ornaments are not. The grid does not tell a repeated note from a held one.

Bach harmonised many tunes more than once. Pieces of one tune, in any key and rhythm, go to one split: pieces whose
sopranos share at least SHARED of the runs of RUN intervals that the shorter one has, directly or by way of other
pieces. Most of the pieces are in jsb_chorales too, in other splits, so no run should start from one on the other set.

The music is in the public domain. The encodings are Margaret Greentree's, which music21 distributes by permission.

Dimensions: F frames (sixteenths) of a piece, V voices of a frame.
"""

import importlib.util
import json
import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.artifacts import ArtifactError
from pipeline.formats.archives import read_members
from pipeline.formats.contents import hash_files
from pipeline.kinds import FieldSpec
from pipeline.kinds.music import PITCHES, REST, MusicConfig, Pieces, make_fields
from pipeline.randomness import make_generator

LICENCE = "music in the public domain; encodings copyright 2003 and 2004 Margaret Greentree, distributed by music21"
PACKAGE = "music21"
SHA256 = "247ad905e76dcc93cbe32f2eaeb6bb623372631f76a23de6ff51cbdb9f233190"  # of the scores: see `find_scores`
LIMIT = 1 << 22  # bytes of a score's XML; the longest has 1.4 million
FILE = "chorales.json"
VOICES = 4
QUARTER = 4  # frames
STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # semitones above C
RUN = 8  # intervals, about a line of a chorale
SHARED = 0.3  # of the shorter soprano's runs; few pairs of pieces are near it


class Config(MusicConfig):
    """How the chorales are split, and the training chorales transposed."""

    source: Literal["bach_chorales"]
    split_seed: int = Field(default=0, ge=0, description="seed that shuffles the tunes")
    validation: float = Field(default=0.2, gt=0, lt=1, description="share of the pieces, at most")
    test: float = Field(default=0.2, gt=0, lt=1, description="share of the pieces, at most")

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.validation + self.test >= 1:
            msg = f"validation + test must stay below 1, got {self.validation} + {self.test}"
            raise ValueError(msg)
        return self


class Unfit(Exception):  # noqa: N818 - the reason to leave a piece out is no error
    """A score that is no piece of four voices on the grid."""


class Bar(NamedTuple):
    """A measure of one voice: its notes (onset, end, pitch) from its own beginning, and its length, in frames.

    begins, ends: whether it is the first or the last one of a part that is repeated.
    """

    notes: list[tuple[Fraction, Fraction, int]]
    length: Fraction
    begins: bool
    ends: bool


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the field of the chorales."""
    del config
    return make_fields(VOICES)


# --- scores ------------------------------------------------------------------


def fetch(folder: Path, config: Config) -> None:
    """Write the notes of each piece by its name, and the reason of each score that is left out.

    Raises:
        ArtifactError: if music21 is missing or another version, or a score is broken.
    """
    del config
    pieces: dict[str, list[list[int]]] = {}
    left_out: dict[str, str] = {}
    for path in find_scores():
        try:
            pieces[path.stem] = read_piece(path).tolist()
        except Unfit as reason:
            left_out[path.stem] = str(reason)
    text = json.dumps({"pieces": pieces, "left_out": left_out}, separators=(",", ":"))
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def find_scores() -> list[Path]:
    """Return the compressed MusicXML files of Bach in the installed music21, by name.

    Raises:
        ArtifactError: if it is not installed, or carries other files than those that the reported numbers come from.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        msg = "data source bach_chorales: expected the package music21, which is not installed; install the extra "
        raise ArtifactError(msg + "`music`: pip install 'generative-experiment-pipeline[music]'")
    root = Path(spec.submodule_search_locations[0]) / "corpus" / "bach"
    paths = sorted(root.glob("*.mxl"))
    if (found := hash_files({path.name: path.read_bytes() for path in paths})) != SHA256:
        msg = f"{root}: expected scores of SHA-256 {SHA256}, found {found}; install the locked version of music21"
        raise ArtifactError(msg)
    return paths


def read_piece(path: Path) -> NDArray[np.uint8]:
    """Return the piece of a compressed MusicXML file, uint8 (F, V), from the soprano to the bass.

    Raises:
        Unfit: with the reason why it is no piece of four voices on the grid.
        ArtifactError: with the file, if it is broken.
    """
    try:
        parts = read_xml(path).findall("part")
        if len(parts) != VOICES:
            msg = "other than four voices"
            raise Unfit(msg)
        voices = [list(read_bars(part)) for part in parts]
    except (ET.ParseError, UnicodeDecodeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        msg = f"{path}: expected a score in MusicXML, got {type(error).__name__}: {error}"
        raise ArtifactError(msg) from error
    if len({tuple(bar[1:] for bar in bars) for bars in voices}) > 1:  # lengths and repeats
        msg = "voices whose measures differ"
        raise Unfit(msg)
    return np.stack([draw_voice(unfold(bars)) for bars in voices], axis=1)


def read_xml(path: Path) -> ET.Element:
    """Return the root of the score in a compressed MusicXML file.

    Raises:
        ArtifactError: if the archive is refused or broken, or has other than one score.
        ValueError: if the score declares entities, which can grow without end.
    """
    members = {member.name: b"".join(member.blocks) for member in read_members(path, LIMIT)}
    scores = [name for name in members if name.endswith((".xml", ".musicxml")) and not name.startswith("META-INF/")]
    if len(scores) != 1:
        msg = f"{path}: expected one score, got {', '.join(members)}"
        raise ArtifactError(msg)
    text = members[scores[0]].decode("utf-8")
    if "<!ENTITY" in text:
        msg = "it declares entities"
        raise ValueError(msg)
    return ET.fromstring(text)  # noqa: S314 - without entities, and expat fetches no document type


def read_bars(part: ET.Element) -> Iterator[Bar]:
    """Yield the measures of a part.

    Raises:
        Unfit: if it has first and second endings.
    """
    divisions = Fraction(0)  # of a quarter
    for measure in part.iterfind("measure"):
        if measure.find("barline/ending") is not None:
            msg = "first and second endings"
            raise Unfit(msg)
        notes: list[tuple[Fraction, Fraction, int]] = []
        now = last = length = Fraction(0)
        for element in measure:
            if (text := element.findtext("divisions")) is not None:
                divisions = Fraction(int(text))
            if element.tag not in {"note", "backup", "forward"} or element.find("grace") is not None:
                continue
            duration = QUARTER * Fraction(read_number(element, "duration")) / divisions
            if element.tag == "backup":
                now -= duration
                continue
            onset = last if element.find("chord") is not None else now
            if element.find("pitch") is not None:
                notes.append((onset, onset + duration, read_pitch(element)))
            now, last = onset + duration, onset
            if element.tag == "note":  # a gap after the last one is no rest
                length = max(length, now)
        marks = {mark.get("direction") for mark in measure.iterfind("barline/repeat")}
        yield Bar(notes, length, "forward" in marks, "backward" in marks)


def read_number(element: ET.Element, name: str) -> int:
    """Return the whole number in an element below another one.

    Raises:
        ValueError: if there is none.
    """
    text = element.findtext(name)
    if text is None:
        msg = f"a {element.tag} without {name}"
        raise ValueError(msg)
    return int(text)


def read_pitch(note: ET.Element) -> int:
    """Return the pitch of a note as in MIDI.

    Raises:
        ValueError: if it is none of MIDI.
    """
    step, alter = note.findtext("pitch/step", ""), note.findtext("pitch/alter", "0")
    pitch = 12 * (read_number(note, "pitch/octave") + 1) + STEPS[step] + int(alter)
    if not 0 <= pitch < PITCHES:
        msg = f"pitch {pitch}"
        raise ValueError(msg)
    return pitch


def unfold(bars: Sequence[Bar]) -> list[Bar]:
    """Return the measures in the order in which they are played: repeated parts twice."""
    played: list[Bar] = []
    start = 0  # of the part that the next sign repeats
    for index, bar in enumerate(bars):
        if bar.begins:
            start = index
        played.append(bar)
        if bar.ends:
            played += bars[start : index + 1]
            start = index + 1
    return played


def draw_voice(bars: Sequence[Bar]) -> NDArray[np.uint8]:
    """Return the pitch of one voice in each frame, uint8 (F,).

    Raises:
        Unfit: if a note is off the grid, or two sound at a time.
    """
    starts = np.cumsum([Fraction(0), *(bar.length for bar in bars)])
    notes = [
        (start + onset, start + end, pitch)
        for start, bar in zip(starts, bars, strict=False)
        for onset, end, pitch in bar.notes
    ]
    if any(time.denominator > 1 for onset, end, _ in notes for time in (onset, end)) or starts[-1].denominator > 1:
        msg = "notes off the grid of sixteenths"
        raise Unfit(msg)
    voice = np.full(int(starts[-1]), REST, dtype=np.uint8)
    for onset, end, pitch in notes:
        if (voice[int(onset) : int(end)] != REST).any():
            msg = "a voice with several notes at a time"
            raise Unfit(msg)
        voice[int(onset) : int(end)] = pitch
    return voice


# --- splits ------------------------------------------------------------------


def prepare(raw: Path, config: Config) -> Pieces:
    """Split the pieces by their tunes, and say which scores were left out.

    Raises:
        ArtifactError: naming the file, if it is none of `fetch`.
    """
    path = raw / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pieces = {name: np.array(rows, np.uint8).reshape(-1, VOICES) for name, rows in content["pieces"].items()}
        reasons = Counter(content["left_out"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path}: expected chorales of {VOICES} voices, got {type(error).__name__}: {error}"
        raise ArtifactError(msg) from error
    groups = group_tunes(pieces)
    names = split_groups(groups, config)
    print(f"{raw.name}: {len(pieces)} pieces of {len(groups)} tunes; each tune is in one split")
    print(f"{raw.name}: {describe_left_out(reasons)}, see {path}")
    return Pieces({split: [pieces[name] for name in sorted(own)] for split, own in names.items()})


def describe_left_out(reasons: Mapping[str, int]) -> str:
    """Return how many scores were left out, and why."""
    parts = ", ".join(f"{count} with {reason}" for reason, count in sorted(reasons.items()))
    return f"{sum(reasons.values())} scores left out" + (f": {parts}" if parts else "")


def group_tunes(pieces: Mapping[str, NDArray[np.uint8]]) -> list[list[str]]:
    """Return the names of pieces in groups of one tune each, in the order of their first names."""
    runs = {name: find_runs(piece[:, 0]) for name, piece in sorted(pieces.items())}
    groups = {name: [name] for name in runs}
    for one, other in combinations(runs, 2):
        fewest = min(len(runs[one]), len(runs[other]))
        if groups[one] is not groups[other] and len(runs[one] & runs[other]) >= max(1, math.ceil(SHARED * fewest)):
            groups[one] += groups[other]
            for name in groups[other]:
                groups[name] = groups[one]
    return list({id(group): sorted(group) for group in groups.values()}.values())


def find_runs(voice: NDArray[np.uint8]) -> set[tuple[int, ...]]:
    """Return the runs of RUN intervals of a voice (F,), which has no rhythm and no key: rests and repeats are dropped.

    A voice of fewer intervals is one run.
    """
    played = voice[voice < PITCHES].astype(int)
    intervals = [after - before for before, after in pairwise(played.tolist()) if after != before]
    return {tuple(intervals[start : start + RUN]) for start in range(max(1, len(intervals) - RUN + 1))}


def split_groups(groups: Sequence[Sequence[str]], config: Config) -> dict[str, list[str]]:
    """Return the pieces of each split; groups are shuffled and stay whole, and no share is exceeded."""
    shares = {"validation": config.validation, "test": config.test}
    total = sum(map(len, groups))
    splits: dict[str, list[str]] = {"train": [], **{name: [] for name in shares}}
    for index in torch.randperm(len(groups), generator=make_generator(config.split_seed, "tunes")).tolist():
        short = [name for name, share in shares.items() if len(splits[name]) + len(groups[index]) <= share * total]
        splits[short[0] if short else "train"] += groups[index]
    return splits
