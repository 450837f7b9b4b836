"""Draws pieces on a grid of sixteenth notes as piano rolls: time to the right, pitch up, a colour for each voice."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.formats.midi import PITCHES, find_notes

COLOURS = ((213, 94, 0), (230, 159, 0), (0, 158, 115), (0, 114, 178))  # Okabe and Ito, also for the colour-blind
PAPER, LINE = (255, 255, 255), (225, 225, 225)
WIDE, HIGH = 4, 4  # pixels of a frame, and of a semitone
BAR = 16  # frames between two lines
MARGIN = 2  # semitones above and below, and between two rolls


def draw_rolls(pieces: Sequence[NDArray[np.uint8]]) -> bytes:
    """Return pieces uint8 (F, V), one below the other, as PNG."""
    played = np.concatenate([piece[piece < PITCHES] for piece in pieces])
    low, high = (int(played.min()), int(played.max())) if played.size else (60, 60)
    width = max(1, *(len(piece) for piece in pieces)) * WIDE
    rolls = []
    for piece in pieces:
        roll = np.full(((high - low + 1 + 2 * MARGIN) * HIGH, width, 3), PAPER, dtype=np.uint8)
        roll[:, :: BAR * WIDE] = LINE
        for voice in reversed(range(piece.shape[1])):  # a higher voice is drawn over a lower one
            for pitch, begin, end in find_notes(piece[:, voice]):
                top = (high - pitch + MARGIN) * HIGH
                # One pixel of paper parts two notes that follow one another.
                roll[top : top + HIGH, begin * WIDE : end * WIDE - 1] = COLOURS[voice % len(COLOURS)]
        rolls += [roll, np.full((HIGH, width, 3), LINE, dtype=np.uint8)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rolls[:-1])).save(buffer, "PNG")
    return buffer.getvalue()
