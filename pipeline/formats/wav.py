"""WAV files of one channel and 16 bits, by the standard library."""

import io
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import ArtifactError

FORMAT = (1, 2)  # channels, bytes of a sample


def encode_wav(samples: NDArray[np.int16], rate: int) -> bytes:
    """Return samples int16 (T,) at `rate` samples per second as a WAV file; equal samples give equal bytes."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(FORMAT[0])
        file.setsampwidth(FORMAT[1])
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def read_wav(path: Path) -> tuple[NDArray[np.int16], int]:
    """Return the samples int16 (T,) of a WAV file, and its samples per second.

    Raises:
        ArtifactError: naming the file, if it is missing, broken, or not of one channel and 16 bits.
    """
    try:
        with wave.open(str(path), "rb") as file:
            found = file.getnchannels(), file.getsampwidth()
            rate, count = file.getframerate(), file.getnframes()
            content = file.readframes(count)
    except (OSError, EOFError, wave.Error) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it is cut off"
        msg = f"{path}: cannot be read as a WAV file: {reason}"
        raise ArtifactError(msg) from error
    if found != FORMAT:
        msg = f"{path}: expected 1 channel of 16 bits, found {found[0]} of {8 * found[1]} bits"
        raise ArtifactError(msg)
    samples = np.frombuffer(content, dtype="<i2").astype(np.int16)
    if len(samples) != count:
        msg = f"{path}: cannot be read as a WAV file: it has {len(samples)} of {count} samples"
        raise ArtifactError(msg)
    return samples, rate
