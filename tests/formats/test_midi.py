"""MIDI, sound and pictures of pieces: mido, the spectrum and Pillow read what was written."""

import io

import mido
import numpy as np
import pytest
from PIL import Image

from pipeline.formats.midi import PAUSE, encode_midi, find_notes
from pipeline.formats.piano_roll import COLOURS, HIGH, MARGIN, WIDE, draw_rolls
from pipeline.formats.synthesizer import FRAME, RATE, synthesize

REST = 128
PIECE = np.array([[60, REST], [60, 48], [62, 48], [62, 48], [REST, 50]], dtype=np.uint8)


def play(content: bytes, frames: int, voices: int) -> np.ndarray:
    """The pitches that sound in each frame, as the file says."""
    file = mido.MidiFile(file=io.BytesIO(content))
    grid = np.full((frames, voices), REST)
    assert len(file.tracks) == voices
    for voice, track in enumerate(file.tracks):
        now, sounding = 0, REST
        for message in track:
            grid[now : now + message.time, voice] = sounding
            now += message.time
            if message.type == "note_on":
                sounding = message.note
            elif message.type == "note_off":
                assert message.note == sounding
                sounding = REST
    return grid


def test_a_midi_file_has_each_note_at_its_time() -> None:
    assert np.array_equal(play(encode_midi([PIECE]), 5, 2), PIECE)
    assert encode_midi([PIECE]) == encode_midi([PIECE.copy()])


def test_pieces_of_a_midi_file_follow_one_another_after_a_pause() -> None:
    grid = play(encode_midi([PIECE, PIECE[:2]]), 7 + PAUSE, 2)
    assert np.array_equal(grid, np.concatenate([PIECE, np.full((PAUSE, 2), REST), PIECE[:2]]))


def test_a_midi_file_lasts_as_long_as_its_sound() -> None:
    """Eight sixteenths at 80 quarters per minute are 1.5 seconds."""
    piece = np.full((8, 1), 69, dtype=np.uint8)
    assert mido.MidiFile(file=io.BytesIO(encode_midi([piece]))).length == pytest.approx(1.5)
    assert len(synthesize(piece)) == 1.5 * RATE + RATE


def test_notes_are_runs_of_one_pitch() -> None:
    assert find_notes(PIECE[:, 0]) == [(60, 0, 2), (62, 2, 4)]
    assert find_notes(PIECE[:, 1]) == [(48, 1, 4), (50, 4, 5)]
    assert find_notes(np.full(3, REST, dtype=np.uint8)) == []


@pytest.mark.parametrize("pitch", [45, 69, 81])
def test_the_loudest_frequency_is_that_of_the_pitch(pitch: int) -> None:
    sound = synthesize(np.full((32, 1), pitch, dtype=np.uint8))[: 32 * FRAME]
    loudest = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))).argmax() * RATE / len(sound)
    assert loudest == pytest.approx(440 * 2 ** ((pitch - 69) / 12), abs=RATE / len(sound))


def test_rests_are_silent_and_four_loud_voices_do_not_clip() -> None:
    assert not synthesize(np.full((4, 2), REST, dtype=np.uint8)).any()
    random = np.random.default_rng(0).integers(36, 82, (64, 4), dtype=np.uint8)
    peak = int(np.abs(synthesize(random).astype(int)).max())
    assert 3000 < peak < 2**15 - 1


def test_a_roll_shows_each_note_at_its_height_in_the_colour_of_its_voice() -> None:
    picture = np.asarray(Image.open(io.BytesIO(draw_rolls([PIECE, PIECE[:2]]))))
    height = (62 - 48 + 1 + 2 * MARGIN) * HIGH
    assert picture.shape == (2 * height + HIGH, 5 * WIDE, 3)
    for frame, pitches in enumerate(PIECE):
        for voice, pitch in enumerate(pitches):
            if pitch < REST:
                pixel = picture[(62 - pitch + MARGIN) * HIGH + 1, frame * WIDE + 1]
                assert tuple(pixel) == COLOURS[voice]
    assert tuple(picture[(62 - 60 + MARGIN) * HIGH + 1, 3 * WIDE + 1]) == (255, 255, 255)
