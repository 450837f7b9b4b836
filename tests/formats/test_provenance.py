"""The origin inside a WAV: readers of sound find the same samples, and a cut or foreign file says nothing."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import ArtifactError
from pipeline.formats import provenance
from pipeline.formats.wav import encode_wav, read_wav

SAMPLES = np.array([0, 1, -1, 32767, -32768, 300, 7], dtype=np.int16)
ORIGIN = {
    "generator": "us <1>",  # of odd length with its end
    "seed": "4 to 5",
    "label": "\u4e03",
    provenance.AIGC: provenance.make_aigc("us <1>", "a/b"),
}
MARKED = provenance.mark_sound(encode_wav(SAMPLES, 8000), ORIGIN)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "a.wav"
    path.write_bytes(content)
    return path


def test_the_samples_stay_and_the_origin_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, MARKED)
    samples, rate = read_wav(path)
    assert (samples.tolist(), rate) == (SAMPLES.tolist(), 8000)
    assert provenance.read(path) == ORIGIN | {provenance.SOURCE_TYPE: provenance.GENERATED}
    assert struct.unpack("<I", MARKED[4:8])[0] == len(MARKED) - 8  # the length that RIFF states
    assert provenance.mark_sound(encode_wav(SAMPLES, 8000), ORIGIN) == MARKED


def test_the_comment_of_a_player_has_the_texts() -> None:
    place = MARKED.index(b"ICMT")
    size = struct.unpack_from("<I", MARKED, place + 4)[0]
    texts = json.loads(MARKED[place + 8 : place + 8 + size].rstrip(b"\0"))
    assert texts == {key: value for key, value in ORIGIN.items() if key != provenance.AIGC}


@pytest.mark.parametrize(
    "content",
    [
        encode_wav(SAMPLES, 8000),
        MARKED[: MARKED.index(b"_PMX") + 40],
        MARKED[:30],
        b"RIFF\xff\xff\xff\xffWAVE" + b"LIST\xff\xff\xff\xffINFO",
        b"RIFF",
        b"",
        MARKED.replace(b"DigitalSourceType", b"digitalSourceType"),
    ],
)
def test_a_wav_without_an_origin_says_nothing(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a\.wav: says nothing of its origin"):
        provenance.read(write(tmp_path, content))


@pytest.mark.parametrize("comment", [b"recorded by me", b"[1, 2]", b"\xff\xfe"])
def test_the_comment_of_another_program_does_no_harm(comment: bytes, tmp_path: Path) -> None:
    place = MARKED.index(b"ICMT") + 8
    size = struct.unpack_from("<I", MARKED, place - 4)[0]
    content = MARKED[:place] + comment[:size].ljust(size, b"\0") + MARKED[place + size :]
    found = provenance.read(write(tmp_path, content))
    assert found.keys() == {provenance.SOURCE_TYPE, provenance.AIGC}
