"""`pipeline listen`: a recogniser that the project did not train, on words of eSpeak NG."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import listen
from pipeline.data.spoken_digits import WORDS
from pipeline.formats.recordings import resample, scale
from pipeline.formats.speech import Word, speak
from pipeline.kinds import audio
from tests.conftest import ROOT

needs_recogniser = pytest.mark.skipif(
    importlib.util.find_spec("pocketsphinx") is None, reason="the extra `listen` is missing"
)
Refuse = Callable[[str], str]


VOICES = ("en-us+m1", "en-us+f2", "en+m3")


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    """The ten digits in each voice, int16 (30, 8192) at 8,000 samples per second."""
    spoken, rate = speak([Word(word, voice, 150, 50) for voice in VOICES for word in WORDS], seed=0)
    ready = [scale(resample(sound.astype(np.float64), rate, 8000)) for sound in spoken]
    return torch.from_numpy(np.stack([np.pad(sound, (0, 8192 - len(sound))) for sound in ready]))


LABELS = torch.arange(10).repeat(len(VOICES))


@needs_recogniser
def test_it_hears_more_digits_than_a_guess_would_whatever_it_has_heard_before(clips: torch.Tensor) -> None:
    """Guesses among ten are right for 10 of 30 clips or more with a probability of 0.0005."""
    recogniser = listen.Recogniser(WORDS, 8000)
    heard = [recogniser.hear(clip) for clip in clips.numpy()]
    assert set(heard) <= {*WORDS, ""}
    right = sum(one == WORDS[label] for one, label in zip(heard, LABELS.tolist(), strict=True))
    assert right >= 10
    assert [recogniser.hear(clip) for clip in clips[:10].flip(0).numpy()] == heard[9::-1]
    share = sum(one == word for one, word in zip(heard[:10], WORDS, strict=True)) / 10
    assert recogniser.measure(clips[:10], LABELS[:10]) == share


@needs_recogniser
def test_classes_that_are_no_english_words_are_refused() -> None:
    with pytest.raises(ArtifactError, match="classes 'xqzt': expected English words of pocketsphinx's dictionary"):
        listen.Recogniser(["zero", "xqzt"], 8000)


@needs_recogniser
@pytest.mark.slow  # the way from pictures back to sound
def test_real_clips_given_out_as_generated_have_the_share_of_the_real_ones(
    clips: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    settings = params.load()
    config = settings.data["speech"]
    clips = clips[:10]
    split = (clips, LABELS[:10])
    folder = artifacts.PREPARED / "speech"
    manifest = audio.write(folder, audio.Clips(dict.fromkeys(artifacts.SPLITS, split), WORDS, "test"), config)  # type: ignore[arg-type]
    artifacts.write_json(folder / "manifest.json", {"source": "spoken_digits", "kind": "audio", **manifest})
    samples = artifacts.RUNS / "speech" / "samples"
    artifacts.write_tensors(samples / "generated.safetensors", {"set_0": clips, "set_1": clips.flip(0)})
    with pytest.raises(ArtifactError, match="conditional model of spoken words; run `dvc repro sample@speech`"):
        listen.listen("speech", settings)
    labels = LABELS[:10]
    artifacts.write_tensors(samples / "given_labels.safetensors", {"set_0": labels, "set_1": labels.flip(0)})
    run, count, share, interval, real, _ = listen.listen("speech", settings)
    assert (run, count) == ("speech", "2 x 10")
    assert share == real
    assert interval == "(2 sets: too few for an interval; 3 are needed)"


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    monkeypatch.chdir(ROOT)

    def run(name: str) -> str:
        with pytest.raises(ArtifactError) as caught:
            listen.main([name])
        return str(caught.value)

    return run


@needs_recogniser
def test_a_run_that_is_unknown_or_of_another_kind_is_refused(refuse: Refuse) -> None:
    assert refuse("nobody").startswith("no run nobody; params.yaml has gan, ")
    assert refuse("gan") == "runs.gan.data: expected clips, got images, labels of data.images"


def test_a_missing_package_is_named_with_its_extra(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    said = refuse("speech")
    assert "pocketsphinx, which is not installed" in said
    assert "pip install 'generative-experiment-pipeline[listen]'" in said
    assert "\n" not in said
