"""Recordings become clips: resampling by a sine's closed form, the loudest part by brute force."""

import numpy as np
import pytest

from pipeline.formats.recordings import centre, find_loudest, resample, scale


@pytest.mark.parametrize(("rate", "target"), [(44100, 8000), (8000, 16000), (22050, 22050), (11025, 8000)])
def test_a_tone_at_another_rate_is_the_same_tone(rate: int, target: int) -> None:
    def tone(at: int) -> np.ndarray:
        return np.sin(2 * np.pi * 440 * np.arange(at // 2) / at)  # half a second

    found = resample(tone(rate), rate, target)
    assert len(found) == pytest.approx(target / 2, abs=1)
    inner = slice(target // 20, len(found) - target // 20)  # the filter sees silence beyond the ends
    assert np.abs(found[inner] - tone(target)[: len(found)][inner]).max() < 2e-3


def test_what_the_new_rate_cannot_hold_is_removed_and_not_folded() -> None:
    found = resample(np.sin(2 * np.pi * 9000 * np.arange(44100) / 44100), 44100, 8000)  # would fold to 1000 Hz
    assert np.abs(found[1000:-1000]).max() < 1e-3


def test_the_loudest_part_is_the_one_with_most_energy() -> None:
    generator = np.random.default_rng(0)
    for length in (1, 7, 39, 40, 50):
        values = generator.normal(size=40)
        starts = range(max(1, 40 - length + 1))
        best = max(starts, key=lambda start: (values[start : start + length] ** 2).sum())
        assert np.array_equal(find_loudest(values, length), values[best : best + length])


def test_a_clip_has_its_peak_at_nine_tenths_and_lies_in_the_middle() -> None:
    clip = centre(scale(np.array([0.1, -0.2, 0.05])), 8)
    assert clip.dtype == np.int16
    assert clip.tolist() == [0, 0, 14745, -29490, 7373, 0, 0, 0]  # 0.9 * 32767 = 29490.3
