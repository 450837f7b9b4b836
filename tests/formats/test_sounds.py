"""Sound files of every format, written for real, and a table of files that cannot be used, each with its reason."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.formats.sounds import Limits, Sound, decode
from pipeline.formats.wav import encode_wav

RATE = 16000
VALUES = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE) * np.hanning(RATE)
LIMITS = Limits()


def encode(values: np.ndarray, rate: int = RATE, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, **({"format": "WAV"} | options))
    return buffer.getvalue()


def read(content: bytes, limits: Limits = LIMITS) -> Sound:
    return decode(io.BytesIO(content), limits)


@pytest.mark.parametrize(
    ("options", "mode", "error"),
    [
        ({}, "WAV PCM_16", 2**-15),
        ({"subtype": "PCM_U8"}, "WAV PCM_U8", 2**-7),
        ({"subtype": "PCM_24"}, "WAV PCM_24", 2**-23),
        ({"subtype": "FLOAT"}, "WAV FLOAT", 2**-24),
        ({"format": "FLAC"}, "FLAC PCM_16", 2**-15),
        ({"format": "AIFF"}, "AIFF PCM_16", 2**-15),
        ({"format": "OGG"}, "OGG VORBIS", 0.05),
        ({"format": "OGG", "subtype": "OPUS"}, "OGG OPUS", 0.05),
        ({"format": "MP3"}, "MP3 MPEG_LAYER_III", 0.05),
    ],
)
def test_every_format_is_read(options: dict[str, str], mode: str, error: float) -> None:
    sound = read(encode(VALUES, **options))
    assert (sound.mode, sound.reason, sound.note) == (f"{mode}, 16000 Hz, 1 channel, 1.00 s", "", "")
    assert sound.samples is not None
    assert len(sound.samples) == RATE
    assert np.abs(sound.samples - VALUES).max() <= error
    assert sound.rate == RATE


def test_the_projects_own_wav_files_are_read_bit_for_bit() -> None:
    samples = np.random.default_rng(0).integers(-30000, 30000, 5000).astype(np.int16)
    sound = read(encode_wav(samples, 8000))
    assert sound.samples is not None
    assert np.array_equal(sound.samples * 2**15, samples)


def test_channels_are_mixed_down_to_their_mean_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).uniform(-0.9, 0.9, (10_000, 3))
    content = encode(values, subtype="DOUBLE")
    monkeypatch.setattr("pipeline.formats.sounds.BLOCK", 1000)
    sound = read(content)
    assert sound.samples is not None
    assert np.allclose(sound.samples, values.mean(axis=1), rtol=0, atol=1e-15)
    assert sound.note == "3 channels mixed into one"


WAV, FLAC, MP3 = encode(VALUES), encode(VALUES, format="FLAC"), encode(VALUES, format="MP3")
BROKEN: dict[str, tuple[bytes, str]] = {
    "a web page": (
        b"<!DOCTYPE html><p>404",
        "no readable sound of a known format, it begins with b'<!DOCTYPE html><'",
    ),
    "half a WAV": (WAV[:16022], "cut off: 15978 of 32000 bytes of sound are there"),
    "a WAV without samples": (WAV[:44], "cut off: 0 of 32000 bytes of sound are there"),
    "half a FLAC": (FLAC[: len(FLAC) // 2], "cannot be decoded: flac decoder lost sync"),
    "half an MP3": (MP3[: len(MP3) // 2], r"cut off: \d+ of 16000 samples are there"),
    "another format": (
        encode(VALUES, format="VOC"),
        "VOC files are not read, expected one of WAV, WAVEX, RF64, FLAC, OGG, MP3, AIFF",
    ),
    "silence": (encode(np.zeros(RATE)), "silent: no sample is above 0.1% of the range"),
    "almost silence": (encode(VALUES * 0.0015), "silent: no sample is above 0.1% of the range"),
    "channels that cancel": (
        encode(np.stack([VALUES, -VALUES], axis=1), subtype="FLOAT"),
        "silent once its channels are mixed: they cancel one another",
    ),
    "clipped": (
        encode(np.clip(4 * VALUES, -1, 1)),
        r"clipped: 27\.\d% of the samples are at full scale, allowed are 1\.0%",
    ),
    "clipped in 8 bits": (encode(np.clip(4 * VALUES, -1, 1), subtype="PCM_U8"), r"clipped: 27\.\d% of .*"),
    "too short": (encode(VALUES[8000:8300]), "0.019 s long, expected 0.02 s or more"),
    "no samples": (encode(VALUES[:0]), "0.000 s long, expected 0.02 s or more"),
    "not a number": (
        encode(np.where(np.arange(RATE) == 77, np.nan, VALUES), subtype="FLOAT"),
        "sample 77 is not a finite number",
    ),
    "too slow": (encode(VALUES, 999), "999 samples per second, expected 1000 to 384000"),
    "too many channels": (encode(np.stack([VALUES] * 33, axis=1)), "33 channels, expected 32 at most"),
    "too long": (
        encode(np.zeros(1_210_000), 1000, format="FLAC"),
        r"20\.2 minutes long, allowed are 20 \(max_minutes\)",
    ),
}


@pytest.mark.fault(31)
@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_used_has_a_reason_of_one_line(name: str) -> None:
    content, reason = BROKEN[name]
    sound = read(content)
    assert sound.samples is None
    assert re.fullmatch(reason, sound.reason), sound.reason


@pytest.mark.parametrize(
    ("changes", "content"),
    [({"max_clipped": 0.6}, BROKEN["clipped"][0]), ({"max_minutes": 0.01}, encode(VALUES[: RATE // 2]))],
)
def test_the_limits_are_keys(changes: dict[str, float], content: bytes) -> None:
    assert read(content, Limits(**changes)).samples is not None


def test_a_size_that_its_writer_did_not_know_is_no_fault() -> None:
    for unknown in (b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"):  # as programs write into a pipe
        content = bytearray(WAV)
        content[4:8] = content[40:44] = unknown
        sound = read(bytes(content))
        assert sound.reason == ""


def test_an_mp3_of_constant_bit_rate_needs_no_header_of_its_length(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    with soundfile.SoundFile(path, "w", 44100, 1, bitrate_mode="CONSTANT", compression_level=0.5) as file:
        file.write(np.random.default_rng(0).normal(0, 0.1, 88200))
    content = path.read_bytes()
    second = content.index(b"\xff\xfb", 4)  # the first frame has the length
    sound = read(content[second:])
    assert sound.reason == ""
    assert sound.samples is not None
    assert len(sound.samples) == pytest.approx(88200, abs=3 * 1152)


def test_a_file_named_raw_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(WAV)
    with (tmp_path / "a.raw").open("rb") as file:
        assert decode(file, LIMITS).reason.startswith("no readable sound of a known format")


def test_random_bytes_behind_a_header_never_raise() -> None:
    generator = np.random.default_rng(0)
    for whole in (WAV, FLAC, MP3, encode(VALUES, format="OGG"), encode(VALUES, format="AIFF")):
        for _ in range(20):
            content = bytearray(whole)
            for place in generator.integers(0, min(len(content), 400), 8):
                content[place] = generator.integers(256)
            sound = read(bytes(content))
            assert (sound.samples is None) == bool(sound.reason)
