"""Turns recordings into clips of one rate, length and loudness, for every source of sound.

Dimensions: T samples of a recording.
"""

from math import gcd

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

LOUDEST = 2**15 - 1  # of 16 bits
PEAK = 0.9  # of the range


def resample(values: NDArray[np.float64], rate: int, target: int) -> NDArray[np.float64]:
    """Return a recording (T,) of `rate` samples per second at `target` samples per second, low-passed as that needs."""
    common = gcd(target, rate)
    return resample_poly(values, target // common, rate // common)


def find_loudest(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Return the `length` samples in a row of a recording (T,) that have the most energy; all if it is shorter."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(values))])
    start = int(np.argmax(energy[length:] - energy[:-length])) if length < len(values) else 0
    return values[start : start + length]


def scale(values: NDArray[np.float64]) -> NDArray[np.int16]:
    """Return a recording (T,) that is not silent with its peak at 0.9 of the range, rounded to 16 bits."""
    return np.rint(values * (PEAK * LOUDEST / np.abs(values).max())).astype(np.int16)


def centre(values: NDArray[np.int16], samples: int) -> NDArray[np.int16]:
    """Return a recording (T,) that is not longer than `samples` in the middle of a clip (samples,), between silence."""
    room = samples - len(values)
    return np.pad(values, (room // 2, room - room // 2))


def describe_changes(samples: int) -> list[str]:
    """Return sentences on what `scale` and `centre` did to each recording."""
    return [
        f"peak of each recording brought to {PEAK} of the range, and rounded to 16 bits",
        f"silence added on both sides, to {samples} samples",
    ]
