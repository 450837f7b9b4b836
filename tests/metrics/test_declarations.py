"""Every value that a metric emits has one declaration, and every declaration is of a value that is emitted."""

import json
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.evidence.features import Evidence
from pipeline.evidence.features import Sampling as Images
from pipeline.evidence.values import Value, Values, is_measurement, load_values, match_name
from pipeline.metrics import audio, images, modes, music, points, text, verse
from tests.conftest import ROOT

# The claims of the three shipped runs: the numbers that `pipeline reproduce` has compared since its first version.
CLAIMS = {
    "gan": [
        *("fid_classifier", "fid_classifier_ratio", "fid_infinity_classifier", "isc_classifier", "kid_classifier"),
        *("precision_classifier", "recall_classifier"),
    ],
    "transformer": [
        f"{split}_{name}"
        for split in ("test", "validation")
        for name in ("bits_per_byte", "bits_per_character", "nats", "perplexity", "perplexity_per_word")
    ],
    "vae": [
        *("elbo_nats", "fid_classifier", "fid_classifier_ratio", "fid_infinity_classifier", "isc_classifier"),
        *("iw500_nats", "kid_classifier", "kl_nats", "precision_classifier", "recall_classifier"),
    ],
}


class Pixels(nn.Module):
    """Features are eight pixels, logits four of them."""

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = pictures.flatten(1).float()
        return flat[:, :8] / 64, flat[:, :4] / 32


def draw(seed: int, channels: int = 1) -> torch.Tensor:
    return torch.randint(256, (100, channels, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def compute_images() -> dict[str, list[float]]:
    sampling = Images(count=100, sets=2, importance_samples=7)
    config = images.Config(sampling=sampling, kid_subsets=2, kid_subset_size=50, neighbours=3, isc_splits=2)
    scores = {name: torch.rand(100) for name in ("elbo_nats", "iw7_nats", "kl_nats")} | {
        "active_units": torch.tensor(5),
        "codes_used": torch.tensor(0.5),
        "code_perplexity": torch.tensor(9.0),
    }
    scores |= {name: torch.rand(50) for name in ("bits_per_dim", "levels_nats", "bits_per_dim_change")}
    networks = {"small_classifier": Pixels(), "inception": Pixels()}
    evidence = Evidence([draw(0), draw(1)], draw(2), [draw(3)], networks, scores, labelled={"small_classifier"})
    return images.compute(evidence, config)


def compute_modes() -> dict[str, list[float]]:
    config = modes.Config(sampling=Images(count=100, sets=1, importance_samples=1))
    return modes.compute(Evidence([draw(0, 3)], draw(1, 3), [], {"small_classifier": Pixels()}), config)


def compute_points() -> dict[str, list[float]]:
    config = points.Config(sampling=points.Sampling(count=100, sets=1), deviations=3.0)
    return points.compute(points.Evidence([torch.randn(100, 2)], torch.randn(100, 2), torch.zeros(1, 2), 1.0), config)


TEXTS = text.Sampling(count=1, length=1, prompt="a", temperature=1, top_k=0, top_p=1, stride=1, random_windows=2)


def score_text() -> text.Evidence:
    nats, windows = torch.ones(400, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    sizes = {"tokens": 401, "characters": 401, "bytes": 401, "words": 80, "unknown_characters": 0}
    known = {"entropy_rate_nats": 0.9, "test_nats": 0.9, "validation_nats": 0.9}
    return text.Evidence(
        dict.fromkeys(text.SPLITS, nats),
        dict.fromkeys(text.SPLITS, sizes),
        known,
        dict.fromkeys(text.SPLITS, windows),
    )


def compute_text() -> dict[str, list[float]]:
    return text.compute(score_text(), text.Config(sampling=TEXTS))


def compute_verse() -> dict[str, list[float]]:
    evidence = verse.Evidence(["b"], ["a"], frozenset(), score_text())
    return verse.compute(evidence, verse.Config(sampling=TEXTS))


class Samples(nn.Module):
    """Features are eight samples of a clip, logits four of them."""

    def forward(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return clips[:, :8].float() / 2**13, clips[:, :4].float() / 2**14


def compute_audio() -> dict[str, list[float]]:
    def draw_clips(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-(2**14), 2**14, (100, 600), dtype=torch.int16, generator=generator)

    evidence = audio.Evidence(
        [draw_clips(0), draw_clips(1)],
        draw_clips(2),
        [draw_clips(3)],
        {"small_classifier": Samples()},
        labelled={"small_classifier"},
        given=[torch.arange(100) % 4] * 2,
        labels=torch.arange(100) % 4,
        trip=draw_clips(2) // 2,
    )
    return audio.compute(evidence, audio.Config(sampling=audio.Sampling(count=100, sets=2), neighbours=3))


def compute_music() -> dict[str, list[float]]:
    pieces = torch.full((3, 16, 4), 60, dtype=torch.uint8)
    sampling = music.Sampling(count=1, frames=16, temperature=1.0, top_k=0, top_p=1.0, stride=0.5)
    evidence = music.Evidence(
        {split: torch.rand(3 * 65) for split in music.SCORED}, dict.fromkeys(music.SPLITS, pieces)
    )
    return music.compute(evidence, music.Config(sampling=sampling))


COMPUTED: dict[str, Callable[[], dict[str, list[float]]]] = {
    "audio": compute_audio,
    "images": compute_images,
    "modes": compute_modes,
    "music": compute_music,
    "points": compute_points,
    "text": compute_text,
    "verse": compute_verse,
}


def find_faults(values: Values, emitted: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the emitted names without a declaration, and the declarations of no emitted name."""
    matches = {name: match_name(values, name) for name in emitted}
    used = {match.template for match in matches.values() if match}
    return {name for name, match in matches.items() if match is None}, set(values) - used


def test_every_metric_is_checked_here() -> None:
    assert list(COMPUTED) == plugins.names("metrics")


@pytest.mark.parametrize("metric", COMPUTED)
def test_each_emitted_name_has_a_declaration_and_each_declaration_a_name(metric: str) -> None:
    values, emitted = load_values(metric), COMPUTED[metric]()
    assert find_faults(values, emitted) == (set(), set())
    assert find_faults(values, [*emitted, "planted"]) == ({"planted"}, set())
    assert find_faults({**values, "unused": Value(depends=("x",))}, emitted) == (set(), {"unused"})


@pytest.mark.parametrize(
    ("metric", "start"),
    [
        ("audio", "mis_"),
        ("images", "fid_infinity_"),
        ("modes", "mode_kl_"),
        ("points", "mode_kl_"),
        ("text", "{split}_windows"),
    ],
)
def test_a_value_without_its_declaration_is_not_emitted(
    metric: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = plugins.load("metrics", metric)
    kept = {template: value for template, value in module.VALUES.items() if not template.startswith(start)}
    assert kept.keys() < module.VALUES.keys()
    monkeypatch.setattr(module, "VALUES", kept)
    with pytest.raises(ArtifactError, match="declare no such"):
        COMPUTED[metric]()


def test_a_score_that_the_metric_does_not_declare_is_refused() -> None:
    with pytest.raises(ArtifactError, match="planted_nats: the metric's VALUES declare no such value"):
        images.average_scores({"planted_nats": torch.ones(3)})


@pytest.mark.parametrize("network", ["infinity_floor", "own_floor", "best_ratio"])
def test_a_network_whose_name_makes_a_name_ambiguous_is_refused(network: str) -> None:
    config = images.Config(
        sampling=Images(count=100, sets=1, importance_samples=1),
        kid_subsets=2, kid_subset_size=50, neighbours=3, isc_splits=2,
    )  # fmt: skip
    with pytest.raises(ArtifactError, match=f"with network '{network}' gives .*: choose another name"):
        images.compute(Evidence([draw(0)], draw(1), [draw(2)], {network: Pixels()}), config)


@pytest.mark.parametrize("metric", COMPUTED)
def test_what_a_declaration_refers_to_is_declared(metric: str) -> None:
    values = load_values(metric)
    for value in values.values():
        for template in filter(None, (value.of, value.counts, value.follows, value.spoiled_by)):
            assert template in values
        assert not value.counts or values[value.counts].role == "count"


def test_the_committed_numbers_are_declared() -> None:
    folders = [path.parent for path in ROOT.glob("**/reports/runs/*/metrics.json") if ".dvc" not in path.parts]
    assert len(folders) >= 3
    for folder in folders:
        metric = json.loads((folder / "protocol.json").read_text())["protocol"]["metric"]["name"]
        names = json.loads((folder / "metrics.json").read_text())
        assert find_faults(load_values(metric), names)[0] == set(), folder


@pytest.mark.parametrize("run", CLAIMS)
def test_the_claims_of_the_shipped_runs_are_the_known_ones(run: str) -> None:
    folder = ROOT / "reports" / "runs" / run
    metric = json.loads((folder / "protocol.json").read_text())["protocol"]["metric"]["name"]
    names = json.loads((folder / "metrics.json").read_text())
    assert [name for name in names if is_measurement(load_values(metric), name)] == CLAIMS[run]
    assert sum(map(len, CLAIMS.values())) == 27
