"""Metrics of sound against SciPy, closed forms and plain loops; noise and silence that must move them."""

import itertools
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError
from pipeline.evidence.selftest import check_order
from pipeline.evidence.selftest_audio import check_all
from pipeline.kinds import audio as kind
from pipeline.metrics import audio as metrics
from pipeline.metrics.audio import Config, Evidence, Sampling
from pipeline.params import Known, Run

RATE, LENGTH = 8000, 1024
CONFIG = Config(sampling=Sampling(count=100, sets=1), neighbours=3)


class Pitch(nn.Module):
    """Hears which of ten frequencies is loudest: features are the logarithms of their powers."""

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = torch.fft.rfft(clips.float() / 2**15 * torch.hann_window(clips.size(1)))
        power = spectrum.abs().square()[:, 20:420].view(len(clips), 10, 40).amax(dim=2)
        features = (power + 1).log()
        return features, 3 * features


def draw_tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tones of ten pitches, each a little off and with a little noise: clips int16 (N, T), and classes int64 (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count)[torch.randperm(count, generator=generator)] % 10
    bins = 40 + 40 * labels + 10 * torch.rand(count, generator=generator) - 5
    waves = (2 * torch.pi * bins[:, None] * torch.arange(LENGTH) / LENGTH).sin()
    loudness = 4000 + 8000 * torch.rand(count, 1, generator=generator)
    return (loudness * waves + 30 * torch.randn(count, LENGTH, generator=generator)).short(), labels


def make_evidence(generated: list[Tensor], **changes: Any) -> Evidence:
    (test, labels), (train, _) = draw_tones(100, 1), draw_tones(100, 2)
    values: dict[str, Any] = {"networks": {"ear": Pitch()}, "labelled": {"ear"}, "labels": labels} | changes
    return Evidence(generated, test, [train], **values)


# --- formulas ------------------------------------------------------------------


def test_scores_of_random_predictions_are_those_of_scipy() -> None:
    logits, real = (2 * torch.randn(40, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    p, q = (values.double().softmax(dim=1).numpy() for values in (logits, real))
    found = metrics.score_classes(logits, real)
    even, odd = p[::2], p[1::2]
    gains = [entropy(row, others.mean(axis=0)) for ours, others in ((even, odd), (odd, even)) for row in ours]
    assert found["isc"] == pytest.approx(math.exp(np.mean(gains)))
    pairs = entropy(p[:, None], p[None], axis=2)
    assert found["mis"] == pytest.approx(math.exp(pairs.mean()))
    assert found["am"] == pytest.approx(entropy(q.mean(axis=0), p.mean(axis=0)) + entropy(p, axis=1).mean())


def test_scores_of_known_predictions() -> None:
    certain = 60 * nn.functional.one_hot(torch.arange(2000) % 10, 10).float()
    shuffled = certain[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    assert metrics.score_classes(shuffled, certain) == {
        "isc": pytest.approx(10, rel=0.02),  # halves that are not quite uniform
        "mis": pytest.approx(math.exp(60 * 0.9), rel=1e-6),  # nine of ten pairs are 60 nats apart
        "am": pytest.approx(0, abs=1e-9),
    }
    assert metrics.score_classes(certain[:1].repeat(50, 1), certain)["isc"] == pytest.approx(1)
    unsure = metrics.score_classes(torch.zeros(50, 10), certain)
    assert unsure == {"isc": pytest.approx(1), "mis": pytest.approx(1), "am": pytest.approx(math.log(10))}


def test_the_kernel_distance_is_that_of_plain_loops() -> None:
    first, second = (torch.randn(size, 4, generator=torch.Generator().manual_seed(size)) for size in (12, 9))
    rows = second.double().numpy()
    width = np.sort([np.linalg.norm(a - b) for a, b in itertools.combinations(rows, 2)])[17]  # the 18th of 36

    def average(left: np.ndarray, right: np.ndarray, *, same: bool) -> float:
        values = [
            math.exp(-float(((a - b) ** 2).sum()) / (2 * width**2))
            for i, a in enumerate(left)
            for j, b in enumerate(right)
            if not (same and i == j)
        ]
        return sum(values) / len(values)

    ours = first.double().numpy()
    expected = average(ours, ours, same=True) + average(rows, rows, same=True) - 2 * average(ours, rows, same=False)
    assert metrics.measure_kad(first, second) == pytest.approx(100 * expected)


def test_the_kernel_distance_is_zero_in_the_mean_and_moves_with_a_shift() -> None:
    def draw(seed: int) -> Tensor:
        return torch.randn(100, 8, generator=torch.Generator().manual_seed(seed))

    same = [metrics.measure_kad(draw(2 * seed), draw(2 * seed + 1)) for seed in range(40)]
    assert min(same) < 0  # unbiased
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(40)
    moved = [metrics.measure_kad(draw(0) + way, draw(1)) for way in (0.0, 0.5, 1.0)]
    assert moved[0] < moved[1] < moved[2]
    with pytest.raises(ArtifactError, match="kad: half of the 100 real features or more are equal"):
        metrics.measure_kad(draw(0), torch.zeros(100, 8))


def test_the_frechet_distance_of_moved_features_is_the_squared_way() -> None:
    values = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    assert metrics.measure_distances(values + 0.5, values, 3)["fad"] == pytest.approx(6 * 0.25, rel=1e-3)


def test_flatness_is_one_of_white_noise_and_zero_of_a_tone_whatever_the_silence() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = (5000 * torch.randn(8, 65_536, generator=generator)).short()
    tone = (10_000 * (0.3 * torch.arange(65_536)).sin()).short().expand(8, -1)
    silent = torch.zeros_like(noise)
    # The mean of a spectrum over M windows that overlap by half has a relative variance of about 19 / 18M (Welch 1967).
    expected = 1 - 19 / 18 / 255 / 2
    assert metrics.measure_sound(noise)["flatness"] == pytest.approx(expected, abs=1e-3)
    assert metrics.measure_sound(tone)["flatness"] < 1e-4
    assert metrics.measure_sound(torch.cat([noise, silent])) == {
        "silent_share": 0.5,
        "clipped_share": 0,
        "flatness": pytest.approx(expected, abs=1e-3),
    }
    assert metrics.measure_sound((noise.int() * 100).clamp(-(2**15), 2**15 - 1).short())["clipped_share"] == 1


# --- what is good and what is bad ----------------------------------------------


def test_other_real_clips_are_good_and_noise_is_bad() -> None:
    tones, labels = draw_tones(100, 3)
    noise = (6000 * torch.randn(tones.shape, generator=torch.Generator().manual_seed(0))).short()
    quiet = tones // 3000
    evidence = make_evidence([tones, noise, torch.cat([tones[:50], quiet[50:]])], given=[labels] * 3)
    values = metrics.compute(evidence, CONFIG)
    assert values["agreement_ear_real"] == [1]
    assert values["agreement_ear"][0] == 1
    assert values["agreement_ear"][1] < 0.3
    assert values["fad_ear_ratio"][0] < 3
    assert values["fad_ear_ratio"][1] > 100
    assert values["kad_ear"][1] > 10 * abs(values["kad_ear"][0])
    assert values["precision_ear"][0] > 0.8 > values["precision_ear"][1]
    assert values["recall_ear"][0] > 0.8 > values["recall_ear"][1]
    assert values["isc_ear"][0] == pytest.approx(values["isc_ear_real"][0], rel=0.05)
    assert values["am_ear"][1] > 10 * values["am_ear"][0]
    assert values["mis_ear"][1] < values["mis_ear"][0]
    assert values["silent_share"] == [0, 0, 0.5]
    assert values["flatness"][1] > 5 * values["flatness"][0]
    assert values["flatness"][0] == pytest.approx(values["flatness_real"][0], rel=0.1)
    assert values["fad_ear_reliable"] == [1]


def test_agreement_is_with_the_class_that_was_asked_for() -> None:
    tones, labels = draw_tones(100, 3)
    wrong = labels.clone()
    wrong[:25] = (wrong[:25] + 1) % 10
    assert metrics.compute(make_evidence([tones], given=[wrong]), CONFIG)["agreement_ear"] == [0.75]
    for changes in ({}, {"given": [labels], "labelled": ()}):  # told no class; a network of other classes
        assert not [name for name in metrics.compute(make_evidence([tones], **changes), CONFIG) if "agreement" in name]


def test_real_clips_after_the_trip_stand_next_to_the_samples() -> None:
    tones, labels = draw_tones(100, 3)
    trip = draw_tones(100, 1)[0].flip(1)  # of the same pitch
    found = metrics.compute(make_evidence([tones], given=[labels], trip=trip), CONFIG)
    assert found["agreement_ear_trip"] == [1]
    assert found["fad_ear_trip"][0] < 0.1 * found["fad_ear_floor"][0]  # the same clips, but for rounding


def test_without_a_network_sound_is_measured_by_itself() -> None:
    found = metrics.compute(make_evidence([draw_tones(100, 3)[0]], networks={}), CONFIG)
    sound = ("silent_share", "clipped_share", "flatness")
    assert found.keys() == {"samples", *sound, *(f"{name}_real" for name in sound)}


def test_the_order_of_the_samples_changes_no_value() -> None:
    tones, labels = draw_tones(100, 3)
    wrong = (labels + (torch.arange(100) < 30)) % 10
    check = check_order(metrics.compute, make_evidence([tones], given=[wrong]), CONFIG)
    assert (check.found, check.holds) == ("unchanged", True)


def test_the_self_test_holds_for_an_ear_and_not_for_one_that_is_deaf() -> None:
    class Deaf(nn.Module):
        def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
            features = (clips[:, :10].int() * 7919 % 1000).float() / 1000
            return features, features

    (train, train_labels), (test, test_labels) = draw_tones(200, 0), draw_tones(200, 1)
    given = (train, test), (train_labels, test_labels), CONFIG
    assert [check.name for check in check_all(Pitch(), *given) if not check.holds] == []
    assert "noise" in [check.name for check in check_all(Deaf(), *given) if not check.holds]


# --- refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generated", "message"),
    [
        (torch.zeros(100, LENGTH, dtype=torch.int16), "generated set 0: all 100 clips are silent"),
        (torch.zeros(100, LENGTH), "generated set 0: expected int16 clips, got torch.float32"),
        (draw_tones(100, 0)[0][:, :1000], r"test: expected the shape of the generated clips \(100, 1000\), got"),
        (draw_tones(49, 0)[0], "generated set 0: 49 clips are too few, expected 50 or more"),
    ],
)
def test_nonsense_is_refused_by_its_set(generated: Tensor, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        metrics.compute(make_evidence([generated]), CONFIG)


def ask(
    splits: Mapping[str, int], network: str = "ear", *, learnt: kind.Spec | None = None, neighbours: int = 3
) -> None:
    spec = kind.Spec(samples=LENGTH, rate=RATE)
    run = Run(model="m", data="spoken", start="none", metric="audio", network=network, seed=0, changes={})
    source = kind.AudioConfig(source="x", path="x", split_seed=0, validation=0.1, test=0.2, samples=LENGTH, rate=RATE)
    config = Config(sampling=Sampling(count=1000, sets=1), neighbours=neighbours)
    settings: Any = SimpleNamespace(
        runs={"r": run},
        networks={network: SimpleNamespace(data="heard")},
        data={"spoken": source},
        metrics={"audio": config},
    )
    known = {
        "spoken": Known({"clips": spec}, {name: {"count": count} for name, count in splits.items()}),
        "heard": Known({"clips": learnt or spec}, {}),
    }
    metrics.require("r", settings, known)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"train": 300, "validation": 50, "test": 40}}, "data.spoken.test: the test split has 40 of 390"),
        ({"splits": {"train": 60, "validation": 5, "test": 40}}, "data.spoken: .*; bring 27 clips more"),
        ({"splits": {"train": 40, "validation": 300, "test": 60}}, "data.spoken: the train split has 40 of 400 clips"),
        ({"neighbours": 80}, "metrics.audio.neighbours: expected at most 79 for 80 clips, got 80"),
        ({"network": "own_floor"}, "with network 'own_floor' gives .*: choose another name"),
        (
            {"learnt": kind.Spec(samples=LENGTH, rate=16_000)},
            "networks.ear has learnt clips of 1024 samples at 16000 per second of data.heard, data.spoken has .* 8000",
        ),
    ],
)
def test_what_compute_would_refuse_is_refused_early_with_the_key(changes: dict[str, Any], message: str) -> None:
    good = {"splits": {"train": 300, "validation": 50, "test": 80}}
    ask(**good)  # type: ignore[arg-type]
    ask({})  # nothing is prepared
    with pytest.raises(ArtifactError, match=message):
        ask(**good | changes)  # type: ignore[arg-type]
