"""A number moves with a setting or an input exactly if its declaration names that field of the protocol.

Each field is really changed, on data of a second at most. Changes of code, versions and number formats are no inputs.
"""

import functools
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import plugins
from pipeline.evidence.features import Evidence
from pipeline.evidence.features import Sampling as Images
from pipeline.evidence.protocol import flatten
from pipeline.evidence.values import list_fields, load_values
from pipeline.formats.tokenizers import ByteTokenizer
from pipeline.kinds import images as images_kind
from pipeline.kinds import labels
from pipeline.kinds import music as music_kind
from pipeline.kinds import text as text_kind
from pipeline.layers.decoding import choose
from pipeline.metrics import audio, images, modes, music, points, text, verse
from pipeline.models import flow_matching, transformer, vae
from tests.models import test_notes
from tests.models.test_flow_matching import make_config as make_flow_config
from tests.models.test_vae import make_config

CONSTANTS = ("code", "versions", "numbers")
MIXTURES = {"wide": torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)), "line": torch.arange(20.0)[:, None]}


class Look(nn.Module):
    """A feature network of fixed weights: `width` features and four logits of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        flat = pictures.flatten(1).float() / 64 - 2
        generator = torch.Generator().manual_seed(self.width)
        weights = torch.randn(flat.size(1), self.width, generator=generator)
        return (flat @ weights).relu(), 0.3 * flat @ weights[:, :4]


def draw(seed: int, count: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, 4, 4), dtype=torch.uint8, generator=generator)


def draw_labels(rule: str, count: int, seed: int) -> Tensor:
    """Classes that the rule draws for data of other shares in the test split than in the training split."""
    shares = {"train": {"per_class": [50, 50]}, "test": {"per_class": [90, 10]}}
    pool = labels.make_pool("labels", rule, {"splits": shares})
    return pool.draw(count, torch.Generator().manual_seed(seed))["labels"]


def randomize(model: nn.Module, deviation: float) -> None:
    """Draw weights of which none is zero, as some are in a fresh model."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))


@functools.cache  # most fields change no score
def score(likelihood: str, samples: int, test: int) -> dict[str, Tensor]:
    """The scores of a VAE of fixed weights, named as the stage `sample` names them."""
    pictures = draw(test, 30)
    model = vae.Model(make_config(latent=16, likelihood=likelihood), images_kind.make_fields((1, 4, 4), 2), 0)
    randomize(model, 0.25)
    observed = model.observe(pictures, torch.Generator().manual_seed(0))
    scores = model.score(observed, samples, torch.Generator().manual_seed(1), {})
    named = {"elbo": "elbo_nats", "iw": f"iw{samples}_nats", "kl": "kl_nats", "active_units": "active_units"}
    return {named[name]: value for name, value in scores.items() if name in named}


@functools.cache
def score_levels(steps: int, samples: int, test: int, count: int, given: tuple[str, ...]) -> dict[str, Tensor]:
    """The bits of a VAE of grey levels, and the other values of a flow, both of fixed weights."""
    pictures = draw(test, 30)[:count]
    fields, drawn = images_kind.make_fields((1, 4, 4), 2), torch.Generator().manual_seed(1)
    labels = {"labels": torch.ones(len(pictures), dtype=torch.int64)}
    config = make_config(latent=16, likelihood="discretized_logistic", conditional=bool(given))
    grey = vae.Model(config, fields, 0)
    randomize(grey, 0.25)
    flow = flow_matching.Model(make_flow_config(likelihood_steps=steps), fields, 0)
    randomize(flow, 0.2)
    scores = flow.score_levels(pictures, drawn, labels)
    return scores | {"bits_per_dim": grey.score(pictures, samples, drawn, labels)["bits_per_dim"]}


def measure_images(**changes: Any) -> dict[str, list[float]]:
    given = {"sets": 2, "count": 100, "test": 2, "train": 3, "floor_sets": 1, "width": 90, "likelihood": "bernoulli"}
    given |= {"kid_subsets": 2, "kid_subset_size": 40, "neighbours": 3, "isc_splits": 2, "importance_samples": 3}
    given |= {"asked": 100, "asked_bits": 200, "bits_images": 30, "classes": (), "labels": "test"} | changes
    sampling = Images(count=given["asked"], sets=given["sets"], importance_samples=given["importance_samples"])
    sampling = sampling.model_copy(update={"bits_images": given["asked_bits"]})
    steps = 1 if given["likelihood"] == "bernoulli" else 2
    keys = ("kid_subsets", "kid_subset_size", "neighbours", "isc_splits")
    config = images.Config(sampling=sampling, **{key: given[key] for key in keys})
    count = given["count"]

    def make(index: int, rule: str) -> Tensor:
        return draw(10 + index, 100) // 8 * 7 + 31 - 4 * draw_labels(rule, 100, index).byte().view(-1, 1, 1, 1)

    evidence = Evidence(
        [make(index, given["labels"])[:count] for index in range(given["sets"])],
        draw(given["test"], 100)[:count],
        [draw(given["train"] + 100 * index, 100)[:count] for index in range(given["floor_sets"])],
        {"net": Look(given["width"])},
        score(given["likelihood"], given["importance_samples"], given["test"])
        | score_levels(steps, given["importance_samples"], given["test"], given["bits_images"], given["classes"]),
        labelled={"net"},
    )
    return images.compute(evidence, config)


def measure_modes(**changes: Any) -> dict[str, list[float]]:
    given = {"sets": 2, "count": 100, "test": 2, "width": 8, "asked": 100, "importance_samples": 1}
    given |= {"labels": "test", "bits_images": 200} | changes
    sampling = Images(count=given["asked"], sets=given["sets"], importance_samples=given["importance_samples"])
    sampling = sampling.model_copy(update={"bits_images": given["bits_images"]})
    shades = [draw_labels(given["labels"], 100, index).byte().view(-1, 1, 1, 1) for index in range(given["sets"])]
    drawn = [draw(10 + index, 100, 3) // 2 + 127 * shade for index, shade in enumerate(shades)]
    generated = [pictures[: given["count"]] for pictures in drawn]
    evidence = Evidence(generated, draw(given["test"], 100, 3)[: given["count"]], [], {"net": Look(given["width"])})
    return modes.compute(evidence, modes.Config(sampling=sampling))


class Ear(nn.Module):
    """A feature network of fixed weights: `width` features and four logits of a clip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.randn(8, self.width, generator=torch.Generator().manual_seed(self.width))
        features = clips[:, 20:28].float() / 2**13 @ weights
        return features.relu(), features[:, :4]


def draw_clips(seed: int, count: int = 100) -> Tensor:
    """Noise: of the clips a few are silent and a few clipped, how many depends on the seed; some are nearly silent."""
    loudness = torch.full((count, 1), 3000.0)
    loudness[: 10 + seed % 5] = 150
    loudness[: 2 + seed % 5] = 10
    loudness[-(3 + seed % 4) :] = 30_000
    noise = torch.randn(count, 300, generator=torch.Generator().manual_seed(seed))
    return (loudness * noise).clamp(-(2**15), 2**15 - 1).short()


def measure_audio(**changes: Any) -> dict[str, list[float]]:
    given = {"sets": 2, "count": 100, "test": 2, "train": 3, "floor_sets": 1, "width": 90, "asked": 100}
    given |= {"neighbours": 3, "labels": "test"} | changes
    count = given["count"]
    asked = [draw_labels(given["labels"], 100, index)[:count] for index in range(given["sets"])]
    generated = [draw_clips(10 + index)[:count] // (1 + labels[:, None]) for index, labels in enumerate(asked)]
    test = draw_clips(given["test"])[:count]
    evidence = audio.Evidence(
        [clips.short() for clips in generated],
        test,
        [draw_clips(given["train"] + 100 * index)[:count] for index in range(given["floor_sets"])],
        {"net": Ear(given["width"])},
        labelled={"net"},
        given=asked,
        labels=(test.sum(dim=1) % 2).long(),
        trip=test.flip(1),
    )
    sampling = audio.Sampling(count=given["asked"], sets=given["sets"])
    return audio.compute(evidence, audio.Config(sampling=sampling, neighbours=given["neighbours"]))


def measure_points(**changes: Any) -> dict[str, list[float]]:
    given = {"sets": 2, "count": 100, "asked": 100, "mixture": "wide", "deviations": 3.0, "labels": "test"}
    given |= changes
    means = MIXTURES[given["mixture"]]
    generator = torch.Generator().manual_seed(0)
    drawn = [
        means[torch.randint(len(means), (100,), generator=generator)]
        + 0.1 * torch.randn(100, means.size(1), generator=generator)
        for _ in range(1 + given["sets"])
    ]
    offsets = [0, *(0.3 * draw_labels(given["labels"], 100, index)[:, None] for index in range(given["sets"]))]
    test, *generated = (part[: given["count"]] for part in map(torch.add, drawn, map(torch.as_tensor, offsets)))
    sampling = points.Sampling(count=given["asked"], sets=given["sets"])
    config = points.Config(sampling=sampling, deviations=given["deviations"])
    return points.compute(points.Evidence(generated, test, means, 0.1), config)


def measure_text(**changes: Any) -> dict[str, list[float]]:
    evidence, sampling = score_text(**changes)
    return text.compute(evidence, text.Config(sampling=sampling))


def score_text(**changes: Any) -> tuple[text.Evidence, text.Sampling]:
    """Score two splits of 250 bytes with a language model of fixed weights.

    content: how much longer the text is that the tokens stand for. cut: tokens into which each one is cut, at the same
    total cost, as by another tokenizer.
    """
    given = {"context": 8, "content": 1, "cut": 1} | changes
    settings = {"count": 1, "length": 2, "prompt": "a", "temperature": 1.0, "top_k": 0, "top_p": 1.0, "stride": 1.0}
    settings |= {"random_windows": 3} | {
        key: value for key, value in changes.items() if key in text.Sampling.model_fields
    }
    sampling = text.Sampling.model_validate(settings)
    drawn = text_kind.draw(
        SimpleNamespace(model=make_language_model(given["context"]), tokenizer=ByteTokenizer("ab")),
        sampling,
        0,
        {"splits": dict.fromkeys(text.SPLITS)},
        lambda split: {"tokens": draw(text.SPLITS.index(split), 16).flatten()[:250].int()},
    )
    sizes = {
        name: {"tokens": 250, "characters": 240, "bytes": 250, "words": 60, "unknown_characters": 0}
        for name in text.SPLITS
    }
    nats = dict(drawn.files["nats"])
    known = {"entropy_rate_nats": 5.0, "test_nats": 4.9, "validation_nats": 4.9}
    longer, cut = given["content"], given["cut"]
    nats["test"] = nats["test"].repeat_interleave(cut) / cut
    share = (249 / 250) / (cut * 249 / (cut * 249 + 1))  # of the text, that the first token has
    sizes["test"] = {name: size * longer * share for name, size in sizes["test"].items()} | {"tokens": cut * 249 + 1}
    windows = dict(drawn.files["windows"])
    windows["test"] = windows["test"] / cut
    return text.Evidence(nats, sizes, known, windows), sampling  # type: ignore[arg-type]


def measure_verse(**changes: Any) -> dict[str, list[float]]:
    """Let a model that prefers one quatrain write poems, next to the scores of `measure_text`."""
    evidence, sampling = score_text(**{"count": 60, "length": 30} | changes)
    couplet, other = "春春春春春，春春春春春。", "山山山山山，春春春春春。"
    quatrain = f"{couplet}\n{couplet}"
    real = [quatrain, f"{other}\n{other}"] + ["山", couplet] * (changes.get("cut", 1) - 1)
    known = frozenset([couplet] if "train" not in changes else [])
    return verse.compute(
        verse.Evidence(write_poems(f"{quatrain}\n\n", sampling), real, known, evidence),
        verse.Config(sampling=sampling),
    )


def write_poems(wanted: str, sampling: text.Sampling) -> list[str]:
    """Draw each character of each sample with a preference for the wanted one, which depends on the prompt."""
    characters = "春山，。！\n"
    preference = {"a": 6.0, "b": 5.0}[sampling.prompt]
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for place in range(sampling.length):
        logits = torch.zeros(sampling.count, len(characters))
        logits[:, characters.index(wanted[place % len(wanted)])] = preference
        drawn.append(choose(logits, generator, sampling.temperature, sampling.top_k, sampling.top_p))
    return ["".join(characters[token] for token in row) for row in torch.cat(drawn, dim=1).tolist()]


def make_language_model(context: int) -> transformer.Model:
    values = {"layers": 1, "heads": 1, "width": 8, "context": context, "dropout": 0.0, "steps": 1, "batch_size": 1}
    values |= {"optimizer": "adamw", "learning_rate": 0.1, "matrix_learning_rate": 0.1, "warmup": 0, "ema": 0.0}
    values |= {"final_learning_rate": 0.0, "weight_decay": 0.0, "clip_norm": 1.0}
    model = transformer.Model(transformer.Config.model_validate(values), text_kind.make_fields(256), 0)
    randomize(model, 0.3)
    return model


def measure_music(**changes: Any) -> dict[str, list[float]]:
    """Score two splits of pieces with a model of fixed weights."""
    given = {"context": 128, "test": 2, "train": 3} | changes
    settings = {"count": 1, "frames": 2, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "stride": 1.0}
    settings |= {key: value for key, value in changes.items() if key in music.Sampling.model_fields}
    sampling = music.Sampling.model_validate(settings)
    model = test_notes.make_model(context=given["context"])
    pieces = {
        split: torch.stack([test_notes.make_piece(80, 10 * seed + index) for index in range(3)])
        for split, seed in {"train": given["train"], "validation": 1, "test": given["test"]}.items()
    }
    drawn = music_kind.draw(
        SimpleNamespace(model=model), sampling, 0, {"splits": pieces}, lambda split: {"notes": pieces[split]}
    )
    return music.compute(music.Evidence(drawn.files["note_nats"], pieces), music.Config(sampling=sampling))


Measure = Callable[..., dict[str, list[float]]]
SAMPLES = {
    "metric.sampling.sets": {"sets": 4},
    "metric.sampling.labels": {"labels": "balanced"},
    "metric.sampling.count": {"asked": 101},
    "counts.samples": {"count": 60},
}
TEST = "reference.sha256.test"
TEXT: dict[str, dict[str, Any]] = {
    "metric.sampling.count": {"count": 2},
    "metric.sampling.length": {"length": 3},
    "metric.sampling.prompt": {"prompt": "b"},
    "metric.sampling.temperature": {"temperature": 0.5},
    "metric.sampling.top_k": {"top_k": 2},
    "metric.sampling.top_p": {"top_p": 0.5},
    "metric.sampling.stride": {"stride": 0.5},
    "metric.sampling.random_windows": {"random_windows": 4},
    "scores": {"context": 6},
    TEST: {"cut": 2},
    "reference.content.test": {"content": 2},
}
MEASURES: dict[str, tuple[Measure, dict[str, dict[str, Any]]]] = {  # by metric: a change by the field that it changes
    "audio": (
        measure_audio,
        {
            **SAMPLES,
            "metric.neighbours": {"neighbours": 2},
            "counts.floor_sets": {"floor_sets": 3},
            "network": {"width": 120},
            TEST: {"test": 4},
            "reference.sha256.train": {"train": 5},
        },
    ),
    "images": (
        measure_images,
        {
            **SAMPLES,
            "metric.kid_subsets": {"kid_subsets": 3},
            "metric.kid_subset_size": {"kid_subset_size": 50},
            "metric.neighbours": {"neighbours": 2},
            "metric.isc_splits": {"isc_splits": 4},
            "metric.sampling.importance_samples": {"importance_samples": 5},
            "counts.floor_sets": {"floor_sets": 2},
            "network": {"width": 120},
            "metric.sampling.bits_images": {"asked_bits": 300},
            "counts.bits_images": {"bits_images": 25},
            "scores": {"likelihood": "discretized_logistic"},
            "scores.levels": {"classes": ("labels",)},
            TEST: {"test": 4},
            "reference.sha256.train": {"train": 5},
        },
    ),
    "modes": (
        measure_modes,
        {
            **SAMPLES,
            "metric.sampling.importance_samples": {"importance_samples": 2},
            "metric.sampling.bits_images": {"bits_images": 300},
            "network": {"width": 12},
            TEST: {"test": 4},
        },
    ),
    "music": (
        measure_music,
        {
            "metric.sampling.count": {"count": 2},
            "metric.sampling.frames": {"frames": 3},
            "metric.sampling.temperature": {"temperature": 0.5},
            "metric.sampling.top_k": {"top_k": 2},
            "metric.sampling.top_p": {"top_p": 0.5},
            "metric.sampling.stride": {"stride": 0.5},
            "scores": {"context": 64},
            TEST: {"test": 4},
            "reference.sha256.train": {"train": 5},
        },
    ),
    "points": (measure_points, {**SAMPLES, "metric.deviations": {"deviations": 1.0}, TEST: {"mixture": "line"}}),
    "text": (measure_text, TEXT),
    "verse": (
        measure_verse,
        {**TEXT, "metric.sampling.length": {"length": 20}, "reference.sha256.train": {"train": 1}},
    ),
}


@pytest.fixture(scope="module")
def unchanged() -> dict[str, dict[str, list[float]]]:
    return {metric: measure() for metric, (measure, _) in MEASURES.items()}


def find_changed(before: Mapping[str, list[float]], after: Mapping[str, list[float]]) -> set[str]:
    """The names whose mean differs by more than rounding, or that are no more."""
    means = [{name: sum(sets) / len(sets) for name, sets in side.items()} for side in (before, after)]
    return {
        name for name, mean in means[0].items() if not math.isclose(mean, means[1].get(name, math.nan), rel_tol=1e-9)
    }


def list_dependents(metric: str, names: Mapping[str, object], field: str) -> set[str]:
    """The values that declare a field."""
    return {name for name in names if field in list_fields(load_values(metric), name)}


@pytest.mark.parametrize(("metric", "field"), [(metric, field) for metric in MEASURES for field in MEASURES[metric][1]])
def test_the_values_that_move_with_a_field_are_those_that_declare_it(
    metric: str, field: str, unchanged: dict[str, dict[str, list[float]]]
) -> None:
    measure, changes = MEASURES[metric]
    counts = {name for name in unchanged[metric] if not list_fields(load_values(metric), name)}
    changed = find_changed(unchanged[metric], measure(**changes[field])) - counts
    assert changed == list_dependents(metric, unchanged[metric], field)


@pytest.mark.parametrize("metric", plugins.names("metrics"))
def test_each_setting_and_each_declared_field_is_changed_above(
    metric: str, unchanged: dict[str, dict[str, list[float]]]
) -> None:
    values, changes = load_values(metric), MEASURES[metric][1]
    config = plugins.load("metrics", metric).Config
    sampling = config.model_fields["sampling"].annotation
    settings = {f"metric.{name}" for name in config.model_fields} - {"metric.sampling"}
    settings |= {f"metric.sampling.{name}" for name in sampling.model_fields}
    declared = {
        field.replace("validation", "test") for name in unchanged[metric] for field in list_fields(values, name)
    }
    assert {field for field in settings | declared if field.partition(".")[0] not in CONSTANTS} == changes.keys()


def test_the_values_that_torch_fidelity_computes_are_those_that_depend_on_its_version(
    monkeypatch: pytest.MonkeyPatch, unchanged: dict[str, dict[str, list[float]]]
) -> None:
    def shift(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: {name: value + 1.0 for name, value in function(*given, **named).items()}

    for name in (
        "fid_statistics_to_metric",
        "isc_features_to_metric",
        "kid_features_to_metric",
        "prc_features_to_metric",
    ):
        monkeypatch.setattr(images, name, shift(getattr(images, name)))
    changed = find_changed(unchanged["images"], measure_images())
    assert changed == list_dependents("images", unchanged["images"], "versions.torch-fidelity")


def test_the_fields_of_number_formats_are_those_that_the_metrics_state() -> None:
    for metric, values in ((metric, load_values(metric)) for metric in plugins.names("metrics")):
        declared = {field for value in values.values() for field in value.depends if field.startswith("numbers")}
        assert declared == {name for name, _ in flatten({"numbers": plugins.load("metrics", metric).NUMBERS})}
