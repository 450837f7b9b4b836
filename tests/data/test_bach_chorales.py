"""The chorales of music21: their notes, scores that are left out or broken, and splits by tune."""

import importlib.util
import json
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts import ArtifactError
from pipeline.data import bach_chorales, jsb_chorales
from pipeline.kinds.music import REST
from tests.data.test_jsb_chorales import CONFIG as JSB
from tests.data.test_jsb_chorales import MIRROR

KEYS = {"source": "bach_chorales", "path": "data/own", "transpose": 0}
CONFIG = bach_chorales.Config.model_validate(KEYS)
SHARED = (
    "bwv245.37",
    "bwv292",
    "bwv298",
    "bwv311",
    "bwv350",
    "bwv393",
)  # pieces that jsb_chorales has; the fourth one has a repeat
needs_scores = pytest.mark.skipif(importlib.util.find_spec("music21") is None, reason="the extra `music` is missing")
REPEAT = '<barline location="{side}"><repeat direction="{way}"/></barline>'
BEGIN, END = REPEAT.format(side="left", way="forward"), REPEAT.format(side="right", way="backward")


def note(pitch: str, duration: int, inside: str = "") -> str:
    """A note such as C4 or F#3, or a rest; `inside` goes before its pitch."""
    alter = f"<alter>{pitch.count('#') - pitch.count('b')}</alter>"
    content = f"<pitch><step>{pitch[0]}</step>{alter}<octave>{pitch[-1]}</octave></pitch>" if pitch else "<rest/>"
    return f"<note>{inside}{content}<duration>{duration}</duration></note>"


def write_score(path: Path, parts: Sequence[Sequence[str]], divisions: int = 2) -> Path:
    """Write a compressed score of parts of measures; a quarter has so many divisions."""
    voices = "".join(
        f'<part id="P{index}">'
        + "".join(
            f"<measure>{f'<attributes><divisions>{divisions}</divisions></attributes>' if not place else ''}{measure}"
            "</measure>"
            for place, measure in enumerate(part)
        )
        + "</part>"
        for index, part in enumerate(parts)
    )
    return pack(path, f'<?xml version="1.0"?><!DOCTYPE score-partwise><score-partwise>{voices}</score-partwise>')


def pack(path: Path, text: str, name: str = "score.xml") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
        archive.writestr(name, text)
    return path


def test_a_score_becomes_the_notes_of_its_voices_with_repeats_ties_and_rests(tmp_path: Path) -> None:
    """A bar of a quarter, a repeated one of two eighths, and a last one; worked out by hand."""
    soprano = [note("C5", 2), BEGIN + note("D5", 1) + note("Eb5", 1) + END, note("F#5", 2)]
    alto = [note("A4", 2), BEGIN + note("A4", 2) + END, note("", 2)]
    tenor = [  # goes back to a second voice on the same staff, which only rests
        note("C4", 2)
        + "<backup><duration>2</duration></backup><forward><duration>1</duration></forward>"
        + note("", 1),
        BEGIN + note("B3", 2) + END,
        note("B3", 2).replace("<note>", "<note><grace/>").replace("<duration>2</duration>", "") + note("C4", 2),
    ]
    bass = [note("C3", 2), BEGIN + note("G2", 2, '<tie type="start"/>') + END, note("G2", 2)]
    piece = bach_chorales.read_piece(write_score(tmp_path / "piece.mxl", [soprano, alto, tenor, bass]))
    assert piece.dtype == np.uint8
    assert piece.T.tolist() == [
        [72] * 4 + [74, 74, 75, 75] * 2 + [78] * 4,
        [69] * 12 + [REST] * 4,
        [60] * 4 + [59] * 8 + [60] * 4,
        [48] * 4 + [43] * 12,
    ]


PLAIN = [note("C4", 2)]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([PLAIN] * 3, "other than four voices"),
        ([PLAIN] * 3 + [[note("C4", 1)]], "voices whose measures differ"),
        ([PLAIN] * 3 + [[BEGIN + note("C4", 2) + END]], "voices whose measures differ"),
        ([PLAIN] * 3 + [[note("C4", 2) + note("E4", 2, "<chord/>")]], "a voice with several notes at a time"),
        ([[note("C4", 1) * 3]] * 4, "notes off the grid of sixteenths"),  # three of a quarter
        ([[note("C4", 2) + '<barline><ending number="1"/></barline>']] * 4, "first and second endings"),
    ],
)
def test_a_score_that_is_no_piece_of_four_voices_is_left_out_with_the_reason(
    parts: list[list[str]], reason: str, tmp_path: Path
) -> None:
    divisions = 3 if "grid" in reason else 2
    with pytest.raises(bach_chorales.Unfit, match=f"^{reason}$"):
        bach_chorales.read_piece(write_score(tmp_path / "piece.mxl", parts, divisions))


LAUGHS = '<!DOCTYPE s [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><score-partwise>&b;</score-partwise>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<score-partwise>", "expected a score in MusicXML, got ParseError"),
        (LAUGHS, "expected a score in MusicXML, got ValueError: it declares entities"),
        (f"<s>{'<part><measure><note/></measure></part>' * 4}</s>", "a note without duration"),
        (f"<s>{f'<part><measure>{PLAIN[0]}</measure></part>' * 4}</s>", "ZeroDivisionError"),  # no divisions
    ],
)
def test_a_broken_score_is_refused_by_its_name(text: str, message: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "broken.mxl", text)
    with pytest.raises(ArtifactError, match=f"{re.escape(str(path))}: .*{message}"):
        bach_chorales.read_piece(path)


def test_an_archive_of_no_score_is_refused_by_its_name(tmp_path: Path) -> None:
    path = pack(tmp_path / "other.mxl", "", "readme.txt")
    with pytest.raises(ArtifactError, match=r"other.mxl: expected one score, got META-INF/container.xml, readme.txt"):
        bach_chorales.read_piece(path)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {"music21": None}.get)
    with pytest.raises(ArtifactError, match=r"music21, which is not installed; .*pip install .*\[music\]") as caught:
        bach_chorales.fetch(tmp_path, CONFIG)
    assert "\n" not in str(caught.value)


@needs_scores
def test_another_version_of_the_scores_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bach_chorales, "SHA256", "0" * 64)
    with pytest.raises(ArtifactError, match=r"found 247ad905.*; install the locked version of music21"):
        bach_chorales.fetch(tmp_path, CONFIG)


# --- splits ------------------------------------------------------------------


def draw_tune(seed: int, notes: int = 40) -> np.ndarray:
    """Random piece uint8 (F, V), whose soprano never repeats a pitch."""
    generator = np.random.default_rng(seed)
    steps = generator.choice([-5, -4, -2, -1, 1, 2, 3, 5], size=notes)
    soprano = np.repeat(60 + np.cumsum(steps) % 20, 4)
    return np.stack([soprano, *generator.integers(40, 60, (3, len(soprano)))], axis=1).astype(np.uint8)


def test_pieces_of_one_tune_are_one_group_in_any_key_rhythm_and_harmony() -> None:
    tune, other = draw_tune(0), draw_tune(1)
    moved = tune + 3
    slower = np.repeat(tune, 2, axis=0)
    reharmonised = np.where(np.arange(4) == 0, tune, 50).astype(np.uint8)
    rests = np.concatenate([tune[:60], np.full((4, 4), REST, dtype=np.uint8), tune[60:]])
    half = np.concatenate([tune[:80], draw_tune(2)[:80]])  # begins like the tune
    pieces = {"a": tune, "b": other, "c": moved, "d": slower, "e": reharmonised, "f": rests, "g": half}
    assert bach_chorales.group_tunes(pieces) == [["a", "c", "d", "e", "f", "g"], ["b"]]


def prepare(folder: Path, pieces: dict[str, Any], **changes: Any) -> dict[str, list[bytes]]:
    left_out = {"x": "other than four voices", "y": "other than four voices", "z": "first and second endings"}
    content = {"pieces": {name: piece.tolist() for name, piece in pieces.items()}, "left_out": left_out}
    (folder / bach_chorales.FILE).write_text(json.dumps(content))
    splits = bach_chorales.prepare(folder, bach_chorales.Config.model_validate(KEYS | changes)).splits
    return {name: [piece.tobytes() for piece in own] for name, own in splits.items()}


def test_no_tune_is_in_two_splits_and_no_share_is_exceeded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tunes = [draw_tune(seed) for seed in range(20)]
    pieces = {f"{seed}-{shift}": tune + shift for seed, tune in enumerate(tunes) for shift in range(1 + seed % 3)}
    splits = prepare(tmp_path, pieces)
    said = capsys.readouterr().out
    assert f"{len(pieces)} pieces of 20 tunes" in said
    assert "3 scores left out: 1 with first and second endings, 2 with other than four voices" in said
    places = {piece: name for name, own in splits.items() for piece in own}
    assert len(places) == len(pieces)
    for seed, tune in enumerate(tunes):
        assert len({places[(tune + shift).tobytes()] for shift in range(1 + seed % 3)}) == 1
    assert all(0.1 * len(pieces) < len(splits[name]) <= 0.2 * len(pieces) for name in ("validation", "test"))
    assert prepare(tmp_path, pieces) == splits
    assert prepare(tmp_path, pieces, split_seed=1) != splits


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValueError, match=r"validation \+ test must stay below 1, got 0.5 \+ 0.5"):
        bach_chorales.Config.model_validate(KEYS | {"validation": 0.5, "test": 0.5})


@pytest.mark.parametrize("content", ["{", "[]", '{"pieces": {"a": [[1, 2, 3]]}, "left_out": {}}'])
def test_what_fetch_did_not_write_is_refused_by_its_name(content: str, tmp_path: Path) -> None:
    (tmp_path / bach_chorales.FILE).write_text(content)
    with pytest.raises(ArtifactError, match=f"{re.escape(str(tmp_path / bach_chorales.FILE))}: expected chorales"):
        bach_chorales.prepare(tmp_path, CONFIG)


# --- the scores themselves ---------------------------------------------------


@needs_scores
@pytest.mark.skipif(not MIRROR.exists(), reason="set DATA_MIRROR to a folder that has jsb_chorales/*.json")
def test_chorales_that_jsb_chorales_has_too_are_equal_note_by_note(tmp_path: Path) -> None:
    """The files of jsb_chorales were made from other encodings; some fill the last bar by holding or resting."""
    jsb_chorales.fetch(tmp_path, JSB)
    known = [piece for pieces in jsb_chorales.prepare(tmp_path, JSB).splits.values() for piece in pieces]
    scores = {path.stem: path for path in bach_chorales.find_scores()}
    for name in SHARED:
        piece = bach_chorales.read_piece(scores[name])
        assert any(len(other) >= len(piece) and (other[: len(piece)] == piece).all() for other in known), name
    assert "music21" not in sys.modules


@needs_scores
@pytest.mark.slow
def test_every_score_is_a_piece_or_has_a_reason_and_the_parser_of_music21_agrees(tmp_path: Path) -> None:
    """The second parser is music21's own, with its own way to play repeats."""
    bach_chorales.fetch(tmp_path, CONFIG)
    content = json.loads((tmp_path / bach_chorales.FILE).read_text())
    assert Counter(content["left_out"].values()) == {
        "other than four voices": 44,
        "notes off the grid of sixteenths": 3,
    }
    assert len(content["pieces"]) == 361
    splits = bach_chorales.prepare(tmp_path, CONFIG).splits
    assert {name: len(pieces) for name, pieces in splits.items()} == {"train": 217, "validation": 72, "test": 72}
    converter = importlib.import_module("music21").converter
    scores = {path.stem: path for path in bach_chorales.find_scores()}
    for name in [*SHARED, "bwv197.7-a"]:  # the last bar of which ends in a gap
        piece = np.full((len(content["pieces"][name]), 4), REST)
        for voice, part in enumerate(converter.parse(scores[name], forceSource=True).parts):
            for each in part.expandRepeats().flatten().notes:
                onset, length = int(4 * each.offset), int(4 * each.quarterLength)
                piece[onset : onset + length, voice] = each.pitch.midi
        assert piece.tolist() == content["pieces"][name], name
