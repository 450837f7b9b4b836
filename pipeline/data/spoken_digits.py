"""spoken_digits: the words zero to nine in 72 synthetic voices of eSpeak NG; needs no network.

A voice is one of six accents with one of twelve speakers. It has one speed and one pitch, says each word once, and is
in one split only, so that the test split has voices that no training heard. `prepare` resamples a clip to the rate of
the config, brings its peak to 0.9 of the range, and centres it in silence. The data are what the locked espeakng-loader
says; dvc.lock tells a difference. Licence of the engine: GPL 3.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.formats.recordings import centre, describe_changes, resample, scale
from pipeline.formats.speech import VERSION, Word, speak
from pipeline.formats.wav import encode_wav, read_wav
from pipeline.kinds import FieldSpec
from pipeline.kinds.audio import AudioConfig, Clips, make_fields
from pipeline.randomness import make_generator

LICENCE = "spoken by eSpeak NG, a program under GPL 3.0 or later"
SHAPED_BY = ("samples", "rate")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc")
SPEAKERS = ("f1", "f2", "f3", "f4", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8")
SLOWEST, FASTEST = 120, 200  # words per minute
LOWEST, HIGHEST = 25, 75  # of the engine's pitches from 0 to 99
SEED = 0  # of speeds and pitches: the stage `fetch` reads no key of the config but `path`
VOICES = "voices.json"


class Config(AudioConfig):
    """How the clips are split, and their form."""

    source: Literal["spoken_digits"]


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the fields of the clips."""
    return make_fields(config.samples, config.rate, len(WORDS))


def fetch(folder: Path, config: Config) -> None:
    """Let the engine speak: <voice>_<word>.wav at its own rate, and voices.json with speeds and pitches."""
    del config
    synthesize(folder, SEED)


def synthesize(folder: Path, seed: int) -> None:
    """Write one WAV for each voice and word; speeds, pitches and the engine's noise depend on the seed."""
    names = [f"{accent}+{speaker}" for accent in ACCENTS for speaker in SPEAKERS]
    generator = make_generator(seed, "voices")
    speeds = torch.randint(SLOWEST, FASTEST + 1, (len(names),), generator=generator).tolist()
    pitches = torch.randint(LOWEST, HIGHEST + 1, (len(names),), generator=generator).tolist()
    voices = list(zip(names, speeds, pitches, strict=True))
    words = [Word(text, *voice) for voice in voices for text in WORDS]
    clips, rate = speak(words, seed)
    for word, clip in zip(words, clips, strict=True):
        artifacts.write_bytes(folder / f"{word.voice}_{word.text}.wav", encode_wav(clip, rate))
    artifacts.write_json(folder / VOICES, {"engine": f"eSpeak NG {VERSION}", "voices": voices})


def prepare(raw: Path, config: Config) -> Clips:
    """Read the clips, bring them to one rate and length, and split the voices.

    Raises:
        ArtifactError: if a file is missing or broken, or a word longer than a clip.
    """
    about = artifacts.read_json(raw / VOICES)
    names = [name for name, *_ in about["voices"]]
    spoken = np.stack([[_read_clip(raw / f"{name}_{text}.wav", config) for text in WORDS] for name in names])
    order = torch.randperm(len(names), generator=make_generator(config.split_seed, "split"))
    test, validation = (round(share * len(names)) for share in (config.test, config.validation))
    parts = {"test": order[:test], "validation": order[test:][:validation], "train": order[test + validation :]}
    if empty := [name for name, part in parts.items() if not len(part)]:
        msg = f"{raw}: {len(names)} voices leave none for {', '.join(empty)}: change validation or test"
        raise ArtifactError(msg)
    clips = {name: torch.from_numpy(spoken)[part.sort().values].flatten(0, 1) for name, part in parts.items()}
    labels = {name: torch.arange(len(WORDS)).repeat(len(part)) for name, part in parts.items()}
    _, rate = read_wav(raw / f"{names[0]}_{WORDS[0]}.wav")  # one for all: the engine's
    resampled = f"resampled from {rate} to {config.rate} samples per second"
    changes = [resampled, *describe_changes(config.samples)]
    return Clips({name: (clips[name], labels[name]) for name in parts}, WORDS, about["engine"], changes)


def _read_clip(path: Path, config: Config) -> NDArray[np.int16]:
    """Return the word of a file, int16 (config.samples,)."""
    samples, rate = read_wav(path)
    values = resample(samples.astype(np.float64), rate, config.rate)
    if len(values) > config.samples:
        msg = f"{path}: {len(values)} samples at {config.rate} Hz, longer than the clips of {config.samples}: "
        raise ArtifactError(msg + f"data.{path.parent.name}.samples {len(values)} would do")
    return centre(scale(values), config.samples)
