"""Speaks words by eSpeak NG in a fresh interpreter; speech.py runs it.

    python -I pipeline/formats/espeak.py < request.json > answer

The request has the paths `library` and `data`, the engine's `version`, a `seed`, and `words`, each a list of text,
voice, speed and pitch. The answer is one line of JSON with the `rate` and the `counts` of the words' samples, and then
the samples, int16. An error is a message on stderr, and status 1.
"""

import ctypes
import json
import sys
from typing import Any

SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS of speak_lib.h: samples come to a callback, before the call returns
SPEED, PITCH = 1, 3  # espeakRATE, espeakPITCH
CHARACTERS, UTF8 = 1, 1  # POS_CHARACTER, espeakCHARS_UTF8
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


def main(request: dict[str, Any]) -> None:
    """Answer a request on stdout."""
    engine = ctypes.CDLL(request["library"])
    rate = engine.espeak_Initialize(SYNCHRONOUS, 0, request["data"].encode(), 0)  # ends the process without its data
    engine.espeak_Info.restype = ctypes.c_char_p
    version = engine.espeak_Info(None).decode()
    if version != request["version"]:
        sys.exit(f"expected version {request['version']}, found {version}; install the locked espeakng-loader")
    parts: list[bytes] = []

    def take(samples: int | None, count: int, events: int) -> int:
        del events
        if samples:
            parts.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = Callback(take)  # must live as long as the engine calls it
    engine.espeak_SetSynthCallback(callback)
    engine.espeak_ng_SetRandSeed(ctypes.c_long(request["seed"]))
    spoken = []
    for word in request["words"]:
        parts.clear()
        speak(engine, *word)
        spoken.append(b"".join(parts))
        if not any(spoken[-1]):
            sys.exit(f"no sound of {word}")
    counts = [len(samples) // 2 for samples in spoken]
    sys.stdout.buffer.write(json.dumps({"rate": rate, "counts": counts}).encode() + b"\n" + b"".join(spoken))


def speak(engine: ctypes.CDLL, text: str, voice: str, speed: int, pitch: int) -> None:
    """Let the engine say one word."""
    if engine.espeak_SetVoiceByName(voice.encode()):
        sys.exit(f"no voice {voice!r}")
    engine.espeak_SetParameter(SPEED, speed, 0)
    engine.espeak_SetParameter(PITCH, pitch, 0)
    content = text.encode()
    size = ctypes.c_size_t(len(content) + 1)
    if status := engine.espeak_Synth(content, size, 0, CHARACTERS, 0, UTF8, None, None):
        sys.exit(f"cannot say {text!r}, status {status}")


if __name__ == "__main__":
    main(json.load(sys.stdin))
