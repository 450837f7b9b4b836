"""MIDI files of pieces on a grid of sixteenth notes: one track for each voice, by the library mido."""

import io
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from mido import Message, MetaMessage, MidiFile, MidiTrack, bpm2tempo
from numpy.typing import NDArray

QUARTERS_PER_MINUTE = 80
TICKS = 4  # of a quarter: one for each frame
PITCHES = 128  # numbers from here on are no pitch
PAUSE = 16  # frames between two pieces
VELOCITY = 80
PROGRAM = 52  # of General MIDI: choir


def encode_midi(pieces: Sequence[NDArray[np.uint8]]) -> bytes:
    """Return pieces uint8 (F, V), one after the other, as a MIDI file; equal pieces give equal bytes."""
    voices = max(piece.shape[1] for piece in pieces)
    file = MidiFile(type=1, ticks_per_beat=TICKS)
    for voice in range(voices):
        track = MidiTrack([Message("program_change", channel=voice, program=PROGRAM, time=0)])
        if not voice:
            track.insert(0, MetaMessage("set_tempo", tempo=bpm2tempo(QUARTERS_PER_MINUTE), time=0))
        start, last = 0, 0
        for piece in pieces:
            for pitch, begin, end in find_notes(piece[:, voice]):
                for kind, frame in (("note_on", start + begin), ("note_off", start + end)):
                    track.append(Message(kind, channel=voice, note=pitch, velocity=VELOCITY, time=frame - last))
                    last = frame
            start += len(piece) + PAUSE
        file.tracks.append(track)
    buffer = io.BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def find_notes(voice: NDArray[np.uint8]) -> list[tuple[int, int, int]]:
    """Return the pitch, the first frame and the frame after the last of each note of a voice (F,)."""
    bounds = [0, *(np.flatnonzero(np.diff(voice.astype(np.int16))) + 1).tolist(), len(voice)]
    spans = pairwise(bounds)
    return [(int(voice[begin]), begin, end) for begin, end in spans if begin < end and voice[begin] < PITCHES]
