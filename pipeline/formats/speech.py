"""Speaks words by eSpeak NG, the engine that the package espeakng-loader carries (GPL 3), called by ctypes.

Equal bytes need a fresh process, a seed and a fixed order: the engine keeps its phases and its random numbers from one
word to the next, also after it is ended. `speak` therefore starts one process for a list of words.
"""

import ctypes
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import espeakng_loader  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import ArtifactError

VERSION = "1.52.0"
SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS of speak_lib.h: samples come to a callback, before the call returns
STAY = 0x8000  # espeakINITIALIZE_DONT_EXIT: an error is a status instead of the end of the process
RATE, PITCH = 1, 3  # espeakRATE, espeakPITCH
CHARACTERS, UTF8 = 1, 1  # POS_CHARACTER, espeakCHARS_UTF8
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


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
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_speak_here, words, seed).result()


def _speak_here(words: Sequence[Word], seed: int) -> tuple[list[NDArray[np.int16]], int]:
    """Speak in this process, which must be a fresh one."""
    engine = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path()
    rate = engine.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), STAY)
    if rate < 0:
        msg = f"eSpeak NG: cannot read its voices in {data}, status {rate}"
        raise ArtifactError(msg)
    engine.espeak_Info.restype = ctypes.c_char_p
    version = engine.espeak_Info(None).decode()
    if version != VERSION:
        msg = f"eSpeak NG: expected version {VERSION}, found {version}; install the locked version of espeakng-loader"
        raise ArtifactError(msg)
    parts: list[bytes] = []

    def take(samples: Any, count: int, events: int) -> int:
        del events
        if samples and count:
            parts.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = Callback(take)  # must live as long as the engine calls it
    engine.espeak_SetSynthCallback(callback)
    engine.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    spoken = []
    for word in words:
        parts.clear()
        if engine.espeak_SetVoiceByName(word.voice.encode()):
            msg = f"eSpeak NG {version}: no voice {word.voice!r}"
            raise ArtifactError(msg)
        engine.espeak_SetParameter(RATE, word.speed, 0)
        engine.espeak_SetParameter(PITCH, word.pitch, 0)
        text = word.text.encode()
        failed = engine.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, CHARACTERS, 0, UTF8, None, None)
        spoken.append(np.frombuffer(b"".join(parts), dtype=np.int16))
        if failed or not spoken[-1].any():
            msg = f"eSpeak NG {version}: {word} gave no sound, status {failed}"
            raise ArtifactError(msg)
    return spoken, rate
