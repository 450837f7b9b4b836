"""Log-mel spectrograms against SciPy and closed forms, and the classifier's other parts for clips."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import stft

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.backbones.audio import BANDS, LogMel, make_features, make_mel, shift, to_unit
from pipeline.kinds.audio import Spec, make_fields
from pipeline.layers.features import FEATURES
from pipeline.networks import classifier
from pipeline.randomness import Part, make_generator

RATE = 8000


def make_sine(frequency: float, samples: int = 8192) -> torch.Tensor:
    return (2 * torch.pi * frequency * torch.arange(samples, dtype=torch.float64) / RATE).sin().float()[None]


def test_silence_is_minus_one_and_a_sine_of_full_scale_is_one_in_its_band() -> None:
    spectrogram = LogMel(RATE)
    assert torch.equal(spectrogram(torch.zeros(2, 8192)), -torch.ones(2, 1, BANDS, 64))
    highest = 2595 * np.log10(1 + RATE / 2 / 700)
    for band in (10, 30, 60):
        centre = 700 * (10 ** ((band + 1) / (BANDS + 1) * highest / 2595) - 1)
        frequency = round(centre / RATE * 512) * RATE / 512  # a frequency of the window's grid
        column = spectrogram(make_sine(frequency))[0, 0, :, 32]
        assert column.argmax() == band
        # The window spreads a sine over three frequencies, of powers 1/4, 1 and 1/4.
        assert 0.9 < column.max() < 1 + 2 * np.log(1.5) / -np.log(1e-5)


def test_the_spectrogram_is_scipys_through_the_same_bands() -> None:
    clips = 0.1 * torch.randn(3, 8192, generator=torch.Generator().manual_seed(0))
    _, _, spectrum = stft(clips.double().numpy(), RATE, "hann", 512, 384, boundary="zeros", padded=False)
    power = np.abs(2 * spectrum) ** 2  # SciPy's "spectrum" scaling has half the amplitude
    expected = np.log(make_mel(RATE, 257).double().numpy() @ power[:, :, :64] + 1e-5)
    found = LogMel(RATE)(clips)[:, 0].double().numpy()
    assert np.allclose(found, 1 - 2 * expected / np.log(1e-5), atol=1e-4)


def test_the_bands_sum_to_one_between_the_first_and_the_last_centre() -> None:
    mel = make_mel(RATE, 257)
    covered = (torch.arange(257) > mel[0].argmax()) & (torch.arange(257) < mel[-1].argmax())
    assert torch.allclose(mel.sum(dim=0)[covered], torch.ones(int(covered.sum())), atol=1e-6)
    assert (mel.sum(dim=1) > 0).all()


def test_int16_becomes_the_range_from_minus_one_to_one() -> None:
    assert to_unit(torch.tensor([[-32768, 0, 16384]], dtype=torch.int16)).tolist() == [[-1, 0, 0.5]]


def test_a_shift_moves_each_clip_and_fills_with_silence() -> None:
    clips = torch.arange(1, 101, dtype=torch.int16).repeat(50, 1)
    moved = shift(clips, 7, make_generator(0, "shift"))
    offsets = set()
    for row in moved:
        shifted = {offset: torch.nn.functional.pad(clips[0], (7, 7))[7 + offset :][:100] for offset in range(-7, 8)}
        (offset,) = [offset for offset, expected in shifted.items() if torch.equal(row, expected)]
        offsets.add(offset)
    assert moved.dtype == torch.int16
    assert {-7, 7} <= offsets
    assert len(offsets) > 10
    assert shift(clips, 0, make_generator(0, "shift")) is clips


def test_two_processes_shift_as_one() -> None:
    clips = torch.arange(1, 101, dtype=torch.int16).repeat(8, 1)
    whole = shift(clips, 7, make_generator(0, "shift"))
    halves = [shift(clips[4 * rank :][:4], 7, make_generator(0, "shift"), Part(rank, 2)) for rank in (0, 1)]
    assert torch.equal(whole, torch.cat(halves))


@pytest.mark.parametrize(("samples", "rate"), [(8192, 8000), (1024, 8000), (16000, 16000), (9000, 8000)])
def test_features_have_the_length_that_is_promised(samples: int, rate: int) -> None:
    layers, flat = make_features(Spec(samples=samples, rate=rate), 4)
    assert layers(torch.zeros(2, samples)).shape == (2, flat)


def test_a_clip_that_is_too_short_is_refused_with_the_length_that_is_needed() -> None:
    with pytest.raises(ArtifactError, match="needs clips of 1024 samples or more at 8000 Hz, got 1023"):
        make_features(Spec(samples=1023, rate=8000), 4)


def test_the_classifier_learns_audio_and_its_weights_have_no_spectrogram() -> None:
    assert "audio" in classifier.LEARNS
    values: dict[str, Any] = {"network": "classifier", "data": "x", "seed": 0, "width": 4, "steps": 1, "batch_size": 2}
    config = classifier.Config(**values, learning_rate=1e-3, weight_decay=0.0, shift=0)
    model = classifier.Model(config, make_fields(8192, RATE, 10), 0)
    features, logits = model.eval()(torch.zeros(2, 8192, dtype=torch.int16))
    assert (features.shape, logits.shape) == ((2, FEATURES), (2, 10))
    assert [name for name in model.kept.state_dict() if "mel" in name or "window" in name] == []


def test_models_that_need_a_generator_do_not_learn_audio() -> None:
    for name in plugins.names("models"):
        assert "audio" not in plugins.load("models", name).LEARNS
