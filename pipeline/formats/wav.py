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
        content = path.read_bytes()
    except OSError as error:
        msg = f"{path}: cannot be read as a WAV file: {error.strerror}"
        raise ArtifactError(msg) from error
    return decode_wav(content, str(path))


def decode_wav(content: bytes, name: str) -> tuple[NDArray[np.int16], int]:
    """Return the samples int16 (T,) of the content of a WAV file, and its samples per second; `name` is for messages.

    Raises:
        ArtifactError: with the name, if the content is broken, or not of one channel and 16 bits.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            found = file.getnchannels(), file.getsampwidth()
            rate, count = file.getframerate(), file.getnframes()
            frames = file.readframes(count)
    except (EOFError, wave.Error) as error:
        msg = f"{name}: cannot be read as a WAV file: {str(error) or 'it is cut off'}"
        raise ArtifactError(msg) from error
    if found != FORMAT:
        msg = f"{name}: expected 1 channel of 16 bits, found {found[0]} of {8 * found[1]} bits"
        raise ArtifactError(msg)
    samples = np.frombuffer(frames, dtype="<i2").astype(np.int16)
    if len(samples) != count:
        msg = f"{name}: cannot be read as a WAV file: it has {len(samples)} of {count} samples"
        raise ArtifactError(msg)
    return samples, rate
