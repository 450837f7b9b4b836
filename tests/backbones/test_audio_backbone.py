"""Log-mel pictures against SciPy and closed forms, the way back to sound, and what networks need of clips."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.signal import resample_poly, stft

from pipeline.artifacts import ArtifactError
from pipeline.backbones import audio as backbone
from pipeline.backbones.audio import (
    BANDS,
    FLOOR,
    LogMel,
    from_levels,
    from_unit,
    make_features,
    make_mel,
    shift,
    to_levels,
    to_unit,
)
from pipeline.formats.speech import Word, speak
from pipeline.kinds.audio import LOUDEST, Spec, is_clipped, is_silent, make_fields
from pipeline.layers.features import FEATURES
from pipeline.networks import classifier
from pipeline.randomness import Part, make_generator

RATE = 8000
SPEC = Spec(samples=8192, rate=RATE)


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


@pytest.fixture(scope="module")
def words() -> torch.Tensor:
    """Four spoken words, int16 (4, T) at 8 kHz."""
    voices = [("zero", "en-us+f1"), ("six", "en-gb-x-rp+m3"), ("seven", "en-029+f4"), ("eight", "en-us-nyc+m7")]
    spoken, rate = speak([Word(text, voice, 150, 50) for text, voice in voices], 0)
    clips = [resample_poly(clip.astype(np.float64), 160, rate // 50) for clip in spoken]
    padded = [np.pad(clip * (29000 / np.abs(clip).max()), (0, 8192 - len(clip))) for clip in clips]
    return torch.from_numpy(np.rint(padded).astype(np.int16))


def test_pictures_are_those_of_clips_in_the_range_from_minus_one_to_one() -> None:
    clips = (12345 * make_sine(500)).short()
    torch.testing.assert_close(to_unit(clips, SPEC), LogMel(RATE)(clips / 32768))


# --- back to sound ----------------------------------------------------------------


def test_speech_survives_the_way_to_a_picture_and_back(words: torch.Tensor) -> None:
    pictures = to_unit(words, SPEC)
    for made in (from_unit(pictures, SPEC), from_levels(to_levels(words, SPEC), SPEC)):
        assert made.dtype == torch.int16
        assert made.shape == words.shape
        errors = (to_unit(made, SPEC) - pictures).abs() * -np.log(FLOOR) / 2  # of the logarithm of the power
        assert errors.mean() < 0.08
        assert errors[pictures > -0.9].mean() < 0.2
        assert (made.double().square().mean() / words.double().square().mean()).sqrt() == pytest.approx(1, abs=0.1)
    noise = (3000 * torch.randn(4, 8192, generator=make_generator(0, "noise"))).short()
    assert (to_unit(noise, SPEC) - pictures).abs().mean() * -np.log(FLOOR) / 2 > 2


def test_a_sine_keeps_its_frequency_and_its_level() -> None:
    made = from_unit(to_unit((16000 * make_sine(1000)).short(), SPEC), SPEC)[0].double()
    assert made.numpy().std() == pytest.approx(16000 / np.sqrt(2), rel=0.1)
    spectrum = np.abs(np.fft.rfft(made.numpy()))
    assert spectrum.argmax() * RATE / 8192 == pytest.approx(1000, abs=30)  # a band is about 40 Hz wide there


def test_silence_stays_silent_and_what_is_too_loud_becomes_quieter_without_clipping(words: torch.Tensor) -> None:
    assert is_silent(from_unit(torch.full((2, 1, BANDS, 64), -1.0), SPEC)).all()
    pictures = to_unit(words, SPEC)
    loud = from_unit(pictures + 0.4, SPEC)
    assert loud.abs().amax(dim=1).tolist() == [LOUDEST] * 4
    assert not is_clipped(loud).any()
    quiet = from_unit(pictures - 0.4, SPEC)
    assert 0 < quiet.abs().max() < words.abs().max() / 2


def test_a_clip_has_the_same_bits_alone_and_among_others(words: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "ITERATIONS", 4)  # what differs after one differs after all
    pictures = to_unit(torch.cat([words, words.roll(100, dims=1)]), SPEC)
    whole = from_unit(pictures, SPEC)
    assert torch.equal(whole, from_unit(pictures, SPEC))
    for size in (1, 2, 3):
        assert torch.equal(whole, torch.cat([from_unit(part, SPEC) for part in pictures.split(size)]))
    monkeypatch.setattr(backbone, "TOGETHER", 5)
    assert torch.equal(whole, from_unit(pictures, SPEC))


def test_the_windows_of_a_clip_add_up_to_it() -> None:
    clips = torch.randn(3, 4096, generator=make_generator(0, "clips"))
    spectrogram = LogMel(RATE)
    spectra = spectrogram.analyse(clips, 32)
    torch.testing.assert_close(spectrogram.synthesise(spectra), clips, rtol=0, atol=1e-5)
    expected = torch.istft(spectra.mT, 512, 128, window=spectrogram.window, length=4096)
    torch.testing.assert_close(spectrogram.synthesise(spectra), expected, rtol=0, atol=1e-5)


def test_powers_of_frequencies_mix_to_those_of_the_bands(words: torch.Tensor) -> None:
    spectrogram = LogMel(RATE)
    power = spectrogram.analyse(words / 32768, 64).abs().square().mT
    bands = spectrogram.mel @ power
    found = spectrogram.unmix(bands)
    assert (found >= 0).all()
    again = spectrogram.mel @ found
    assert ((again + FLOOR) / (bands + FLOOR)).log().abs().mean() < 0.01
    # The least squares of SciPy, of the loudest column, are no closer.
    column = int(bands[0].sum(dim=0).argmax())
    _, residual = nnls(spectrogram.mel.double().numpy(), bands[0, :, column].double().numpy())
    assert (again - bands)[0, :, column].norm() < residual + 0.02 * bands[0, :, column].norm()


@pytest.mark.parametrize(("samples", "rate"), [(8300, 8000), (16000, 16000), (4000, 22050), (2000, 1000)])
def test_any_length_and_rate_comes_back(samples: int, rate: int) -> None:
    spec = Spec(samples=samples, rate=rate)
    clips = (8000 * torch.randn(2, samples, generator=make_generator(0, "clips"))).short()
    pictures = to_unit(clips, spec)
    assert pictures.shape[1:] == backbone.find_shape(spec)
    again = from_unit(pictures, spec)
    assert again.shape == (2, samples)
    # At 1,000 Hz some bands have no frequency. What is not a number would become silence or the lowest sample.
    assert 2000 < again.double().std() < 20000


# --- what networks need --------------------------------------------------------------


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
    spec = Spec(samples=samples, rate=rate)
    layers, flat = make_features(spec, 4)
    assert layers(to_unit(torch.zeros(2, samples, dtype=torch.int16), spec)).shape == (2, flat)


def test_a_clip_that_is_too_short_is_refused_with_the_length_that_is_needed() -> None:
    expected = "samples: expected clips with 8 frames or more, got 1023 samples, which are 7 frames of 128; "
    with pytest.raises(ArtifactError, match=f"^{expected}samples 1024 or 1152 would do$"):
        make_features(Spec(samples=1023, rate=8000), 4)


@pytest.mark.parametrize(
    ("samples", "refuse", "problem"),
    [
        (8064, backbone.require_generator, "frames that halve evenly along with 64 bands, got 8064 .* 7168 or 8192"),
        (100, backbone.require_generator, "got 100 samples, which are 0 frames of 128; samples 2048 or 3072 would do"),
        (
            8100,
            lambda spec: backbone.require_multiple(spec, 4),
            "a multiple of 4 frames, got 8100 samples, .* 63 frames.* 7680 or 8192",
        ),
        (8100, lambda spec: backbone.require_velocity("unet", 8, spec), "a multiple of 8 frames, .* 7168 or 8192"),
        (300, lambda spec: backbone.require_velocity("dit", 32, spec), "a multiple of 4 frames, .* 512 or 1024"),
        (
            8192,
            lambda spec: backbone.require_velocity("perceptron", 8, spec),
            "backbone: expected unet or dit for audio",
        ),
        (8192, lambda spec: backbone.require_velocity("unet", 12, spec), "width: expected a multiple of 8 with backb"),
    ],
)
def test_clips_that_no_network_fits_are_refused_with_those_that_would_do(
    samples: int, refuse: Callable[[Spec], None], problem: str
) -> None:
    with pytest.raises(ArtifactError, match=problem):
        refuse(Spec(samples=samples, rate=RATE))


def test_the_classifier_learns_audio_and_its_weights_have_no_spectrogram() -> None:
    assert "audio" in classifier.LEARNS
    values: dict[str, Any] = {"network": "classifier", "data": "x", "seed": 0, "width": 4, "steps": 1, "batch_size": 2}
    config = classifier.Config(**values, learning_rate=1e-3, weight_decay=0.0, shift=0)
    model = classifier.Model(config, make_fields(8192, RATE, 10), 0)
    features, logits = model.eval()(torch.zeros(2, 8192, dtype=torch.int16))
    assert (features.shape, logits.shape) == ((2, FEATURES), (2, 10))
    assert [name for name in model.kept.state_dict() if "mel" in name or "window" in name] == []
