"""Additive synthesis of pieces on a grid of sixteenth notes: a note is a sum of harmonics that swells and fades."""

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.midi import QUARTERS_PER_MINUTE, find_notes

RATE = 8000  # samples per second: the highest voices have few harmonics below 4 kHz
FRAME = round(RATE * 60 / QUARTERS_PER_MINUTE / 4)  # samples of a sixteenth
TAIL = RATE  # samples of silence after a piece, into which its last notes fade
HARMONICS = (1.0, 0.5, 0.3, 0.15, 0.08)  # amplitudes
ATTACK, RELEASE = 0.03, 0.12  # seconds
LOUDNESS = 0.8  # of the range, where all voices are as loud as they can be


def synthesize(piece: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return the sound of a piece uint8 (F, V), int16 (T,), which cannot clip."""
    frames, voices = piece.shape
    sound = np.zeros(frames * FRAME + TAIL)
    for voice in range(voices):
        for pitch, begin, end in find_notes(piece[:, voice]):
            note = make_note(pitch, (end - begin) * FRAME)
            sound[begin * FRAME : begin * FRAME + len(note)] += note
    # Two notes of a voice overlap only while the first one fades and the second one swells.
    return (sound * (LOUDNESS / voices) * (2**15 - 1)).round().clip(-(2**15), 2**15 - 1).astype(np.int16)


def make_note(pitch: int, samples: int) -> NDArray[np.float64]:
    """Return a tone of a MIDI pitch that is held for `samples`, and its fading, within [-1, 1]."""
    fading = round(RELEASE * RATE)
    times = np.arange(samples + fading) / RATE
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    audible = [(k, amplitude) for k, amplitude in enumerate(HARMONICS, 1) if k * frequency < RATE / 2]
    tone = sum((a * np.sin(2 * np.pi * k * frequency * times) for k, a in audible), np.zeros(len(times)))
    swell = np.minimum(times / ATTACK, 1)
    fade = np.minimum((samples + fading - np.arange(len(times))) / fading, 1)
    return tone / sum(HARMONICS) * swell * fade
