"""Speech by eSpeak NG, the engine that the package espeakng-loader carries (GPL 3).

Equal samples need a fresh process, a seed and a fixed order, because the engine keeps its state from one word to the
next, also after it is ended. `speak` therefore starts one process for a list of words.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import espeakng_loader  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import ArtifactError
from pipeline.formats import espeak

VERSION = "1.52.0"


class Word(NamedTuple):
    """A word, the voice such as en-us+f3 that says it, its speed in words per minute, its pitch from 0 to 99."""

    text: str
    voice: str
    speed: int
    pitch: int


def speak(words: Sequence[Word], seed: int) -> tuple[list[NDArray[np.int16]], int]:
    """Return the samples int16 (T,) of each word, with the engine's pauses, and the samples per second.

    Raises:
        ArtifactError: if the engine has no voices or another version than VERSION, or does not say a word.
    """
    paths = {"library": espeakng_loader.get_library_path(), "data": espeakng_loader.get_data_path()}
    request = json.dumps({**paths, "version": VERSION, "seed": seed, "words": words})
    command = [sys.executable, "-I", espeak.__file__]
    done = subprocess.run(command, input=request.encode(), capture_output=True, check=False)
    if done.returncode:
        msg = f"eSpeak NG: {done.stderr.decode().strip() or f'ended with status {done.returncode}'}"
        raise ArtifactError(msg)
    header, _, content = done.stdout.partition(b"\n")
    answer = json.loads(header)
    ends = np.cumsum(answer["counts"])
    return np.split(np.frombuffer(content, dtype=np.int16), ends[:-1]), answer["rate"]
