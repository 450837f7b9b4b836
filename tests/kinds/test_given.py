"""Fields that a model is given: drawn by a rule, in an order that means nothing, and stored with the samples."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.artifacts import ArtifactError
from pipeline.evidence.features import Evidence, Sampling
from pipeline.kinds import Pool, draw_sets, images, make_pool
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.labels import Spec as Labels
from pipeline.kinds.text import Spec as Text
from pipeline.metrics.images import Config, compute
from pipeline.weights import Loaded

FIELDS = image_fields((1, 4, 4), 4)
# Class 2 has no training example, class 3 no test example.
MANIFEST = {"splits": {"train": {"per_class": [180, 60, 0, 20]}, "test": {"per_class": [90, 30, 5, 0]}}}


def make(rule: Any) -> Pool:
    return make_pool(FIELDS, ["labels"], SimpleNamespace(labels=rule), MANIFEST, lambda _: None)


def count(pool: Pool, seed: int = 0, samples: int = 6000) -> list[int]:
    drawn = pool.draw(samples, torch.Generator().manual_seed(seed))["labels"]
    assert (drawn.dtype, drawn.shape) == (torch.int64, (samples,))
    return drawn.bincount(minlength=4).tolist()


@pytest.mark.parametrize(
    ("rule", "shares"),
    [
        ("test", [3 / 4, 1 / 4, 0, 0]),
        ("train", [180 / 260, 60 / 260, 0, 20 / 260]),
        ("balanced", [1 / 3, 1 / 3, 0, 1 / 3]),
        ([3], [0, 0, 0, 1]),
        ([0, 3, 3, 2], [1 / 3, 0, 0, 2 / 3]),
    ],
)
def test_labels_have_the_shares_of_their_rule_and_none_is_of_a_class_that_was_not_trained(
    rule: Any, shares: list[float]
) -> None:
    for found, share in zip(count(make(rule)), shares, strict=True):
        assert found == pytest.approx(6000 * share, abs=4.5 * (6000 * share * (1 - share)) ** 0.5)  # binomial


@pytest.mark.parametrize(("rule", "warned"), [("test", True), ("balanced", True), ([2, 0], True), ("train", False)])
def test_a_class_without_a_training_example_is_named(rule: Any, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make(rule)
    expected = "labels: no sample is of class 2, which no training example has"
    assert [entry.getMessage() for entry in caplog.records] == [expected] * warned


def test_every_part_of_the_draws_has_the_shares_and_one_draw_has_every_class() -> None:
    drawn = make("test").draw(4000, torch.Generator().manual_seed(3))["labels"]
    for part in drawn.split(500):
        assert (part == 0).double().mean() == pytest.approx(0.75, abs=4.5 * (0.75 * 0.25 / 500) ** 0.5)
    # Neighbours are independent: index % classes would have a share of 0 here.
    assert (drawn[1:] == drawn[:-1]).double().mean() == pytest.approx(0.75**2 + 0.25**2, abs=0.05)
    single = {int(make("test").draw(1, torch.Generator().manual_seed(seed))["labels"]) for seed in range(40)}
    assert single == {0, 1}


def test_draws_depend_on_the_generator_and_their_position_only() -> None:
    few, many = (make("train").draw(size, torch.Generator().manual_seed(1))["labels"] for size in (50, 3000))
    assert torch.equal(few, many[:50])
    assert not torch.equal(few, make("train").draw(50, torch.Generator().manual_seed(2))["labels"])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ([0, 4], r"sampling.labels: expected classes from 0 to 3, got 4"),
        ([2], r"sampling.labels: \[2\] has no class with a training example; .*\[180, 60, 0, 20\]"),
    ],
)
def test_rules_that_the_data_do_not_fit_are_refused(rule: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        make(rule)


def test_fields_of_other_kinds_and_several_are_rows_of_a_split_that_belong_together() -> None:
    captions = torch.arange(30).view(10, 3)
    splits = {"test": {"caption": captions, "labels": torch.arange(10)}}
    fields = {"caption": Text(vocabulary=30), "labels": Labels(classes=10)}
    pool = make_pool(fields, ["caption", "labels"], SimpleNamespace(), {}, splits.__getitem__)
    drawn = pool.draw(200, torch.Generator().manual_seed(0))
    assert torch.equal(drawn["caption"], captions[drawn["labels"]])
    assert len(drawn["labels"].unique()) == 10
    assert pool.dump() == {}  # rows of data are not stored in a model
    with pytest.raises(ArtifactError, match=r"expected test or train for caption and labels, got .*balanced"):
        make_pool(fields, ["caption", "labels"], SimpleNamespace(labels="balanced"), {}, splits.__getitem__)


def test_a_pool_survives_json_and_keeps_the_rows_of_a_value() -> None:
    pool = Pool.restore(make("test").dump())
    assert count(pool) == count(make("test"))
    assert count(pool.keep("labels", 1)) == [0, 6000, 0, 0]
    assert count(pool.keep("labels", 3)) == [0, 0, 0, 6000]  # trained, although the rule draws none
    with pytest.raises(ArtifactError, match="labels: expected one of 0, 1, 3, got 2"):
        pool.keep("labels", 2)
    assert Pool.restore(Pool().dump()).draw(5, torch.Generator()) == {}


class Dealer:
    """Makes a picture of the class that it is given: all that a conditional model can do right."""

    makes, given, device = "images", ("labels",), torch.device("cpu")

    def sample(self, count: int, generator: torch.Generator, given: Any) -> dict[str, torch.Tensor]:
        noise = 12 * torch.randn(count, 1, 4, 4, generator=generator)
        return {"images": (60 + 120 * given["labels"].view(-1, 1, 1, 1) + noise).round().clamp(0, 255).byte()}


class Pixels(nn.Module):
    """Features are four pixels, logits two of them."""

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = pictures.flatten(1).float() / 16
        return flat[:, :4], flat[:, :2]


def load(pool: Pool) -> Loaded:
    return Loaded(Dealer(), FIELDS, None, None, pool)


def test_sets_are_stored_with_what_they_were_given() -> None:
    files = draw_sets(load(make("train")), 0, 400, 2)
    assert files.keys() == {"generated", "given_labels"}
    assert not torch.equal(files["given_labels"]["0"], files["given_labels"]["1"])
    for index, generated in files["generated"].items():
        means = generated.double().mean(dim=(1, 2, 3))
        assert torch.equal((means > 120).long(), (files["given_labels"][index] > 0).long())


def test_a_model_that_is_given_a_field_is_not_sampled_without() -> None:
    with pytest.raises(ArtifactError, match="the model is given labels: expected a tensor"):
        load(Pool()).sample(3, torch.Generator())
    drawn = load(make("train")).sample(60, torch.Generator().manual_seed(0)).double().mean(dim=(1, 2, 3))
    assert 0 < (drawn > 120).sum() < 40  # a preview has the shares, too


def test_a_perfect_model_of_unequal_classes_has_the_distance_of_real_images() -> None:
    # 180 and 61 test images: in turn, classes of equal shares, the distance is that of the shares.
    manifest = {"splits": {"train": {"per_class": [720, 244]}, "test": {"per_class": [180, 61]}}}
    sampling = Sampling(count=241, sets=4, importance_samples=1)
    config = Config(sampling=sampling, kid_subsets=2, kid_subset_size=100, neighbours=3, isc_splits=2)
    generator = torch.Generator().manual_seed(9)

    def deal(labels: torch.Tensor) -> torch.Tensor:
        return Dealer().sample(len(labels), generator, {"labels": labels})["images"]

    test = deal(torch.arange(241).ge(180).long())
    pool = make_pool(image_fields((1, 4, 4), 2), ["labels"], sampling, manifest, lambda _: None)
    ours = list(draw_sets(load(pool), 0, 241, 4)["generated"].values())
    trains = [deal(torch.rand(241, generator=generator).lt(61 / 241).long()) for _ in range(8)]

    def measure(generated: list[torch.Tensor]) -> float:
        values = compute(Evidence(generated, test, trains, {"pixels": Pixels()}), config)["fid_pixels"]
        return sum(values) / len(values)

    assert measure(ours) < 3 * measure(trains)
    assert measure([deal(torch.arange(241) % 2)]) > 20 * measure(trains)


def test_duplicates_are_compared_with_real_images_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(images, "duplicate_share", lambda _, real: seen.append(real) or 0.0)
    split = torch.arange(127, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 4, 4)  # sorted, and less than 2 x 64
    images.look(load(make("train")), {"images": split}, {}, 0, None)
    assert len(seen[0]) == images.PREVIEW
    assert int(seen[0].max()) >= 125
