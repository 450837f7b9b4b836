"""Pieces as a kind: what is refused, the transpositions, the windows of a training, what is shown and served."""

import base64
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mido
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.formats.midi import find_notes
from pipeline.kinds import music, parse_fields
from pipeline.kinds.music import END, IGNORED, REST, MusicConfig, Pieces
from pipeline.weights import load_model, save_model
from tests.models.test_notes import FIELDS, make_model

CONFIG = MusicConfig(source="x", path="x", transpose=2)
SETTINGS = SimpleNamespace(count=5, frames=20, temperature=1.0, top_k=0, top_p=1.0, stride=0.5)


def make_pieces(count: int, seed: int = 0, frames: int = 20) -> list[np.ndarray]:
    numbers = np.random.default_rng(seed)
    pieces = [numbers.integers([60, 48], [72, 60], (frames + 3 * index, 2), dtype=np.uint8) for index in range(count)]
    for piece in pieces:
        piece[4, 0] = REST
    return pieces


def load(**changes: Any) -> Any:
    """What the stages hand to a kind."""
    model = make_model(**changes)
    return SimpleNamespace(model=model, fields=FIELDS, config=model.config, tokenizer=None)


def test_a_prepared_split_holds_the_pieces_their_ends_and_their_transpositions(tmp_path: Path) -> None:
    splits = {"train": make_pieces(4), "validation": make_pieces(2, 1), "test": make_pieces(3, 2)}
    manifest = music.write(tmp_path, Pieces(splits), CONFIG)
    assert parse_fields(manifest["fields"]) == FIELDS
    for name, pieces in splits.items():
        tensors = artifacts.read_tensors(tmp_path / f"{name}.safetensors")
        assert manifest["splits"][name]["count"] == len(tensors["notes"]) == len(tensors["shifts"])
        assert manifest["splits"][name]["originals"] == len(pieces)
        assert manifest["splits"][name]["notes"] == sum(piece.size for piece in pieces)
        own = tensors["notes"][tensors["shifts"] == 0]
        for piece, row in zip(pieces, own, strict=True):
            assert np.array_equal(music.trim(row), piece)
            assert bool((row[len(piece) :] == END).all())
        assert name == "train" or bool((tensors["shifts"] == 0).all())
    assert manifest["splits"]["test"]["shared_with_train"] == 0
    sheet = music.show_data(tmp_path, manifest)
    assert sheet.suffix == ".png"
    assert Image.open(io.BytesIO(sheet.content)).width > 100


def test_pieces_are_transposed_within_the_range_of_each_voice() -> None:
    wide = np.array([[60, 40], [72, 52]], dtype=np.uint8)
    narrow = np.array([[61, REST], [70, 51]], dtype=np.uint8)
    found = music.transpose([wide, narrow], 3)
    shifts = [shift for shift, _ in found]
    assert shifts == [0, 0, -1, 1]  # 61 may go down by one; 51 and 70 up, 51 by one only; the wide one cannot move
    for shift, piece in found[1:]:
        assert piece.tolist() == [[61 + shift, REST], [70 + shift, 51 + shift]]
    assert [shift for shift, _ in music.transpose([wide, narrow], 0)] == [0, 0]


def test_a_test_piece_that_is_a_transposed_training_piece_is_counted(tmp_path: Path) -> None:
    train = [*make_pieces(3), np.array([[63, 52], [66, 55]], dtype=np.uint8)]
    moved = next(piece for shift, piece in music.transpose(train, 2) if shift)
    manifest = music.write(tmp_path, Pieces({"train": train, "validation": [train[0]], "test": [moved]}), CONFIG)
    assert manifest["splits"]["test"]["shared_with_train"] == 1
    doubts = music.question_data("pieces", manifest, CONFIG)
    assert any("1 of 1 examples in the test split are in the train split too" in doubt for doubt in doubts)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (np.zeros((0, 2), dtype=np.uint8), r"got uint8 \(0, 2\)"),
        (np.full((3, 2), END, dtype=np.uint8), "up to 129"),
        (np.full((3, 2), 60), r"got int64 \(3, 2\)"),
        (np.full(3, 60, dtype=np.uint8), r"got uint8 \(3,\)"),
        (np.full((3, 2), REST, dtype=np.uint8), "a piece with a note, got 3 frames of rests"),
    ],
)
def test_what_is_no_piece_is_refused_by_its_split_and_place(piece: np.ndarray, message: str, tmp_path: Path) -> None:
    splits = {"train": make_pieces(1), "validation": [*make_pieces(1), piece], "test": make_pieces(1)}
    with pytest.raises(ArtifactError, match=f"validation 1: .*{message}"):
        music.write(tmp_path, Pieces(splits), CONFIG)


def test_a_split_without_a_piece_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the test split has no piece"):
        music.write(tmp_path, Pieces({"train": make_pieces(1), "validation": make_pieces(1)}), CONFIG)


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        (torch.full((2, 3, 2), 60), "expected pieces uint8"),
        (torch.tensor([[[60, END]]], dtype=torch.uint8), "end together"),
        (torch.tensor([[[60], [END], [60]]], dtype=torch.uint8), "end together and once"),
    ],
)
def test_nonsense_is_refused(notes: torch.Tensor, message: str) -> None:
    with pytest.raises(ArtifactError, match=f"generated: .*{message}"):
        music.check("generated", notes)


def test_windows_are_of_one_piece_begin_with_a_bar_and_have_every_note() -> None:
    pieces = make_pieces(3, frames=70)
    examples = music.Excerpts(music.pad(pieces), context=64, seed=0)
    assert len(examples) == 3
    whole = [[END, *piece.flatten().tolist(), END] for piece in pieces]
    seen: list[set[int]] = [set(), set(), set()]
    for epoch in range(60):
        batch = examples.batch(torch.tensor([2, 0, 1]), epoch)
        for index, inputs, targets in zip((2, 0, 1), batch["inputs"].tolist(), batch["targets"].tolist(), strict=True):
            places = [
                start
                for start in range(0, len(whole[index]), 32)
                if whole[index][start + 1 : start + 65] == [target for target in targets if target != IGNORED]
            ]
            assert len(places) == 1
            kept = len([target for target in targets if target != IGNORED])
            assert inputs[:kept] == whole[index][places[0] : places[0] + kept]
            assert set(targets[kept:]) <= {IGNORED}
            seen[index] |= set(range(places[0] + 1, places[0] + 1 + kept))
    assert [len(places) for places in seen] == [len(tokens) - 1 for tokens in whole]
    again, other = (examples.batch(torch.arange(3), epoch)["inputs"] for epoch in (5, 6))
    assert torch.equal(examples.batch(torch.arange(3), 5)["inputs"], again)
    assert not torch.equal(again, other)


def test_a_sampled_run_has_scores_of_each_split_and_exhibits_to_see_to_hear_and_to_edit() -> None:
    loaded = load(seed=1)
    splits = {name: {"notes": music.pad(make_pieces(3, place))} for place, name in enumerate(("validation", "test"))}
    manifest = {"splits": {name: {} for name in ("train", *splits)}}
    drawn = music.draw(loaded, SETTINGS, 0, manifest, splits.__getitem__)
    again = music.draw(loaded, SETTINGS, 0, manifest, splits.__getitem__)
    assert drawn.exhibits == again.exhibits
    for name, split in splits.items():
        assert len(drawn.files["note_nats"][name]) == int((split["notes"] != END).sum()) + 3
        assert torch.equal(drawn.files["note_nats"][name], again.files["note_nats"][name])
    assert drawn.files["generated"]["0"].shape == (5, 20, 2)
    shown = {f"{exhibit.name}{exhibit.suffix}": exhibit.content for exhibit in drawn.exhibits}
    assert list(shown) == [
        f"{name}{ending}" for name in ("samples", "harmonisations") for ending in (".png", ".wav", ".mid")
    ]
    rate, sound = wavfile.read(io.BytesIO(shown["harmonisations.wav"]))
    assert len(sound) > rate
    # A test piece and its completion follow one another, and the first voice is the same in both.
    file = mido.MidiFile(file=io.BytesIO(shown["harmonisations.mid"]))
    played = [[message.note for message in track if message.type == "note_on"] for track in file.tracks]
    sung = [pitch for pitch, *_ in find_notes(splits["test"]["notes"][0, :20, 0].numpy())]
    assert played[0][: 2 * len(sung)] == 2 * sung
    assert played[1][: len(sung)] != played[1][len(sung) : 2 * len(sung)]


def test_the_completion_of_a_piece_keeps_its_first_voice_and_its_length() -> None:
    [piece] = music.pad(make_pieces(1))
    found = music.harmonise(load(seed=1), piece, torch.Generator().manual_seed(0), SETTINGS)
    assert torch.equal(found[:, 0], piece[:, 0])
    assert int(found.max()) < END
    assert not torch.equal(found[:, 1], piece[:, 1])


def test_one_sample_is_served_as_midi_and_a_saved_model_gives_the_same(tmp_path: Path) -> None:
    loaded = load(seed=1)
    served = music.encode(loaded, torch.Generator().manual_seed(0), SETTINGS)
    assert len(mido.MidiFile(file=io.BytesIO(base64.b64decode(served))).tracks) == 2
    save_model(tmp_path, "notes", loaded.model, loaded.config, FIELDS)
    assert music.encode(load_model(tmp_path), torch.Generator().manual_seed(0), SETTINGS) == served


def test_a_preview_shows_a_piece_and_an_unlearnt_one_is_an_alarm() -> None:
    held_out = {"notes": music.pad(make_pieces(3))}
    found = music.look(load(), held_out, {}, 0, SETTINGS)
    assert [f"{exhibit.name}{exhibit.suffix}" for exhibit in found.exhibits] == ["samples.png"]
    nats = found.values["validation_nats"]
    assert music.find_alarms({"validation_nats": (7, nats)}, {}) == [
        f"step 7: nothing learnt: validation {nats:.3f} nats, a uniform guess has 4.868"
    ]
    assert music.find_alarms({"validation_nats": (7, 4.5)}, {}) == []
    assert music.find_alarms({}, {}) == []
