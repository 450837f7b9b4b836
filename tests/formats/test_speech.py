"""Words of eSpeak NG: the same bytes from every fresh process, and errors that name the word or the version."""

import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import ArtifactError
from pipeline.formats import speech
from pipeline.formats.speech import Word, speak

WORDS = [Word("seven", "en-us+f3", 160, 50), Word("six", "en+m3", 120, 30), Word("seven", "en-us+f3", 160, 50)]


def test_equal_words_and_seed_give_equal_samples_and_another_seed_others() -> None:
    first, rate = speak(WORDS, 0)
    time.sleep(1.1)  # without a seed the engine takes the time, in seconds
    (second, _), (other, _) = speak(WORDS, 0), speak(WORDS, 1)
    assert rate == 22050
    assert [clip.tobytes() for clip in first] == [clip.tobytes() for clip in second]
    assert [clip.tobytes() for clip in first] != [clip.tobytes() for clip in other]
    # The reason for a fresh process: the engine carries its state from word to word.
    assert first[0].tobytes() != first[2].tobytes()


def test_slow_words_are_longer_and_high_voices_higher() -> None:
    (slow, fast, low, high), rate = speak(
        [Word("nine", "en-us", speed, pitch) for speed, pitch in ((100, 50), (250, 50), (160, 10), (160, 90))], 0
    )
    assert len(slow) > 1.3 * len(fast)

    def find_pitch(clip: np.ndarray) -> float:
        """Return the frequency of the highest peak of the autocorrelation, between 60 and 400 Hz."""
        middle = clip[len(clip) // 3 :][:4096].astype(float)
        correlation = np.correlate(middle, middle, "full")[len(middle) - 1 :]
        lags = np.arange(rate // 400, rate // 60)
        return rate / lags[correlation[lags].argmax()]

    assert find_pitch(high) > 1.3 * find_pitch(low)


@pytest.mark.parametrize(
    ("word", "message"),
    [(Word("six", "nobody", 160, 50), "eSpeak NG: no voice 'nobody'"), (Word("", "en", 160, 50), "no sound of")],
)
def test_a_word_that_cannot_be_said_is_an_error(word: Word, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        speak([word], 0)


def test_another_version_of_the_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "VERSION", "1.51.0")
    with pytest.raises(ArtifactError, match=r"expected version 1.51.0, found 1.52.0; install the locked espeakng-"):
        speak(WORDS, 0)


def test_an_engine_without_its_voices_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech.espeakng_loader, "get_data_path", lambda: str(tmp_path / "gone"))
    with pytest.raises(ArtifactError, match=r"eSpeak NG: Error processing file '.*': No such file or directory"):
        speak(WORDS, 0)
