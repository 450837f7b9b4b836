"""WAV files, against SciPy's reader and writer."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from pipeline.artifacts import ArtifactError
from pipeline.formats.wav import encode_wav, read_wav

SAMPLES = np.array([0, 1, -1, 32767, -32768, 300], dtype=np.int16)


def test_scipy_reads_the_samples_and_the_rate(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode_wav(SAMPLES, 8000))
    rate, samples = wavfile.read(tmp_path / "a.wav")
    assert rate == 8000
    assert samples.dtype == np.int16
    assert samples.tolist() == SAMPLES.tolist()


def test_what_scipy_writes_is_read(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 22050, SAMPLES)
    samples, rate = read_wav(tmp_path / "a.wav")
    assert rate == 22050
    assert samples.tolist() == SAMPLES.tolist()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.stack([SAMPLES, SAMPLES], axis=1), "a.wav: expected 1 channel of 16 bits, found 2 of 16 bits"),
        (SAMPLES.astype(np.uint8), "a.wav: expected 1 channel of 16 bits, found 1 of 8 bits"),
        (SAMPLES.astype(np.float32), "a.wav: cannot be read as a WAV file: unknown format: 3"),
    ],
)
def test_another_form_is_refused_by_file_name(samples: np.ndarray, message: str, tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 8000, samples)
    with pytest.raises(ArtifactError, match=message):
        read_wav(tmp_path / "a.wav")


@pytest.mark.parametrize("content", [None, b"", b"RIFF", encode_wav(SAMPLES, 8000)[:20], b"\x89PNG" * 20])
def test_a_broken_or_missing_file_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a.wav: cannot be read as a WAV file: \w"):
        read_wav(tmp_path / "a.wav")


def test_a_file_that_lacks_its_last_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode_wav(SAMPLES, 8000)[:-4])
    with pytest.raises(ArtifactError, match=r"a.wav: cannot be read as a WAV file: it has 4 of 6 samples"):
        read_wav(tmp_path / "a.wav")
