"""Image metrics against closed forms, other libraries and identities; nonsense is refused."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from pipeline.artifacts import ArtifactError
from pipeline.evidence.features import Evidence, Make, extract
from pipeline.kinds import images as images_kind
from pipeline.metrics import images as metrics
from pipeline.metrics.images import Config, compute, extrapolate_fid, score_classes

CONFIG = Config.model_validate(
    {
        "sampling": {"count": 400, "sets": 1, "importance_samples": 1},
        "kid_subsets": 3,
        "kid_subset_size": 400,
        "neighbours": 3,
        "isc_splits": 2,
    }
)


class Pixels(nn.Module):
    """Features are eight pixels, logits four of them: what the metrics see is known exactly."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = images.flatten(1).float()
        return (flat[:, :8] - 128) / 64, flat[:, :4] / 32


def measure(network: nn.Module, images: torch.Tensor, reference: torch.Tensor, config: Config) -> dict[str, float]:
    return metrics.measure_distances(extract(network, images).features, extract(network, reference).features, config)


def draw(seed: int, count: int = 400, mean: float = 128, spread: float = 20) -> torch.Tensor:
    noise = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (mean + spread * noise).round().clamp(0, 255).byte()


def test_fid_is_the_closed_form_of_two_gaussians() -> None:
    fake, real = draw(0, spread=30), draw(1, mean=100)
    features = [Pixels()(images)[0].double() for images in (fake, real)]
    means = [values.mean(dim=0) for values in features]
    covariances = [values.T.cov() for values in features]
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    expected = (means[0] - means[1]).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * root
    assert measure(Pixels(), fake, real, CONFIG)["fid"] == pytest.approx(expected.item(), rel=1e-6)


def test_torch_fidelity_agrees_with_torchmetrics_on_the_same_features() -> None:
    fake, real = draw(0, spread=30), draw(1, mean=120)
    ours = measure(Pixels(), fake, real, CONFIG)

    class Features(nn.Module):
        num_features = 8

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return Pixels()(images)[0]

    fid = FrechetInceptionDistance(feature=Features(), input_img_size=(1, 4, 4))
    kid = KernelInceptionDistance(feature=Features(), subsets=1, subset_size=400)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    assert ours["fid"] == pytest.approx(fid.compute().item(), rel=1e-5)
    # Every subset of 400 out of 400 is the whole set: no chance is left in KID.
    assert ours["kid"] == pytest.approx(kid.compute()[0].item(), rel=1e-4)


def test_a_set_against_itself_has_no_distance_and_full_precision_and_recall() -> None:
    images = draw(0)
    values = measure(Pixels(), images, images, CONFIG)
    assert values["fid"] == pytest.approx(0, abs=1e-3)
    assert values["precision"] == values["recall"] == 1


def draw_classes(seed: int, count: int = 400) -> torch.Tensor:
    """Images of four classes that are far apart, sorted by class."""
    return torch.cat([draw(seed + 10 * index, count // 4, mean=40 + 55 * index, spread=8) for index in range(4)])


def test_the_order_of_the_samples_changes_no_value() -> None:
    config = CONFIG.model_copy(update={"kid_subset_size": 50})  # by which KID's subsets are a part of the set
    fake, real = draw_classes(0), draw_classes(1)
    orders = [torch.randperm(400, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    found = [
        compute(Evidence([fake[order]], real, [draw_classes(2)], {"pixels": Pixels()}, labelled={"pixels"}), config)
        for order in (torch.arange(400), torch.arange(399, -1, -1), *orders)
    ]
    assert "class_share_min_pixels" in found[0]
    assert all(other == found[0] for other in found[1:])


def test_fid_of_infinitely_many_is_near_its_value_in_random_orders_when_samples_are_sorted_by_class() -> None:
    config = CONFIG.model_copy(update={"kid_subset_size": 50, "kid_subsets": 1})
    fake, real = draw_classes(0), draw_classes(1)
    orders = [torch.randperm(400, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
    random = torch.tensor([measure(Pixels(), fake[order], real, config)["fid_infinity"] for order in orders])
    ordered = measure(Pixels(), fake, real, config)["fid_infinity"]
    assert abs(ordered - random.mean()) < 4 * random.std()
    statistics = metrics.fid_features_to_statistics(extract(Pixels(), real).features)
    prefixes = {n: metrics.measure_fid(extract(Pixels(), fake[:n]).features, statistics) for n in (100, 200, 400)}
    assert abs(extrapolate_fid(prefixes) - random.mean()) > 20 * random.std()  # what prefixes gave


def test_a_dropped_mode_lowers_recall_and_not_precision() -> None:
    def two_modes(seed: int, share: float) -> torch.Tensor:
        low, high = draw(seed, mean=40, spread=5), draw(seed + 100, mean=210, spread=5)
        return torch.cat([low[: int(400 * share)], high[: 400 - int(400 * share)]])

    real = two_modes(0, 0.5)
    whole, dropped = (measure(Pixels(), two_modes(7, share), real, CONFIG) for share in (0.5, 1.0))
    assert dropped["recall"] < whole["recall"] - 0.3
    assert dropped["precision"] == pytest.approx(whole["precision"], abs=0.08)
    assert dropped["fid"] > whole["fid"]


def test_inception_score_of_even_sure_classes_is_their_number() -> None:
    images = torch.zeros(400, 1, 4, 4, dtype=torch.uint8)
    images.view(400, 16)[torch.arange(400), torch.arange(400) % 4] = 255
    # Logits of 255 / 32 are not certain: the closed form for K equal classes is K exp(-H(p)).
    top = math.exp(255 / 32)
    p = torch.tensor([top, 1, 1, 1]).double() / (top + 3)
    expected = 4 * math.exp(float((p * p.log()).sum()))
    config = CONFIG.model_copy(update={"isc_splits": 1})
    assert score_classes(extract(Pixels(), images).logits, config)["isc"] == pytest.approx(expected, rel=1e-4)


def test_compute_sets_the_floor_and_the_counts_beside_each_number() -> None:
    scores = {"elbo_nats": torch.tensor([1.0, 2.0, 3.0, 6.0]), "active_units": torch.tensor(5)}
    sets = [draw(0), draw(5)]
    values = compute(Evidence(sets, draw(1), [draw(2), draw(3)], {"pixels": Pixels()}, scores), CONFIG)
    assert values["samples"] == [400]
    assert values["floor_sets"] == [2]
    assert values["fid_pixels_floor"] == [measure(Pixels(), draw(seed), draw(1), CONFIG)["fid"] for seed in (2, 3)]
    fids = [measure(Pixels(), images, draw(1), CONFIG)["fid"] for images in sets]
    assert values["fid_pixels"] == pytest.approx(fids, rel=1e-9)  # the order of the sums is another
    pairs = zip(values["fid_pixels"], values["fid_pixels_floor"], strict=True)
    assert values["fid_pixels_ratio"] == [fid / floor for fid, floor in pairs]
    assert values["elbo_nats"] == [3]
    assert values["elbo_nats_se"] == [pytest.approx(torch.tensor([1.0, 2, 3, 6]).std().item() / 2)]
    assert values["active_units"] == [5]
    assert "active_units_se" not in values
    assert values["fid_pixels_reliable"] == [1]


def test_what_is_recalled_stands_for_what_would_be_made() -> None:
    made: dict[str, dict[str, torch.Tensor]] = {}

    def recall(about: Mapping[str, Any], given: torch.Tensor, make: Make) -> dict[str, torch.Tensor]:
        content = json.dumps([about, given.tolist()], sort_keys=True)
        if content not in made:
            made[content] = make(given)
        return made[content]

    found = []
    for images, known in ((draw(0), 0), (draw(5), 5)):  # test, two training sets and two floors
        assert len(made) == known
        evidence = Evidence([images], draw(1), [draw(2), draw(3)], {"pixels": Pixels()}, recall=recall)
        found.append(compute(evidence, CONFIG))
        assert found[-1] == compute(dataclasses.replace(evidence, recall=Evidence.recall), CONFIG)
    assert len(made) == 5
    assert found[0]["fid_pixels_floor"] == found[1]["fid_pixels_floor"]


def test_torch_fidelity_as_a_whole_gives_the_same_numbers() -> None:
    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **settings: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            named = dict(zip(("features", "logits"), Pixels()(images), strict=True))
            return tuple(named[layer] for layer in self.features_list)

    class Images(Dataset[torch.Tensor]):
        def __init__(self, images: torch.Tensor) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.images[index]

    fake, real = draw(0, spread=30), draw(1)
    register_feature_extractor("pixels", Extractor)
    theirs = calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="pixels",
        isc_splits=2,
        kid_subsets=3,
        kid_subset_size=400,
        cache=False,
        verbose=False,
    )
    ours = measure(Pixels(), fake, real, CONFIG) | score_classes(extract(Pixels(), fake).logits, CONFIG)
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "isc": "inception_score_mean",
        "precision": "precision",
        "recall": "recall",
    }
    for name, key in names.items():
        assert ours[name] == pytest.approx(theirs[key], rel=1e-6), name


def test_fid_extrapolated_over_one_by_count_is_the_line_s_intercept() -> None:
    assert extrapolate_fid({count: 7 + 300 / count for count in (100, 250, 1000)}) == pytest.approx(7)


def test_extrapolation_takes_most_of_the_bias_of_few_samples_away() -> None:
    # Equal distributions: with few generated images FID is far above the value that many give.
    reference = draw(1, count=4000)
    few, many = draw(2, count=200), draw(3, count=4000)
    config = CONFIG.model_copy(update={"kid_subset_size": 200})
    plain, extrapolated = (measure(Pixels(), few, reference, config)[name] for name in ("fid", "fid_infinity"))
    truth = measure(Pixels(), many, reference, CONFIG)["fid"]
    assert abs(extrapolated - truth) < 0.5 * abs(plain - truth)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.linspace(0, 1, 960).view(60, 1, 4, 4),
            r"expected uint8 images in \[0, 255\], got torch.float32 in \[0",
        ),
        (torch.full((60, 1, 4, 4), math.nan), "960 not finite"),
        (torch.randint(9, (60, 1, 4, 4)), "torch.int64"),
        (draw(0, count=49), "49 images are too few, expected 50"),
        (torch.zeros(60, 2, 4, 4, dtype=torch.uint8), r"expected images \(N, 1 or 3, H, W\)"),
        (torch.randint(2, (60, 1, 4, 4), dtype=torch.uint8), "60 images without a value above 1"),
        (torch.zeros(60, 1, 4, 4, dtype=torch.uint8), "every pixel of all 60 images is 0"),
    ],
)
@pytest.mark.fault(19, 20, 21)
def test_nonsense_is_refused(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        images_kind.check("generated", images)
    with pytest.raises(ArtifactError, match=message):
        compute(Evidence([images], images, [images], {}, {}), CONFIG)


def test_unequal_counts_are_refused() -> None:
    with pytest.raises(ArtifactError, match="test: expected the shape of the generated images"):
        compute(Evidence([draw(0)], draw(1, count=300), [draw(2)], {}, {}), CONFIG)


@pytest.mark.parametrize(("key", "most"), [("kid_subset_size", 60), ("isc_splits", 60), ("neighbours", 59)])
def test_more_than_the_images_that_are_compared_are_refused_by_the_key_s_name(key: str, most: int) -> None:
    evidence = Evidence([draw(0, count=60)], draw(1, count=60), [draw(2, count=60)], {"pixels": Pixels()})
    config = CONFIG.model_copy(update={"kid_subset_size": 60, key: 61})
    with pytest.raises(ArtifactError, match=rf"metrics.images.{key}: expected at most {most} for 60 images, got 61"):
        compute(evidence, config)


def test_a_network_whose_output_is_not_finite_is_named() -> None:
    class Broken(Pixels):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features, logits = super().forward(images)
            return features, logits / 0

    with pytest.raises(ArtifactError, match="Broken: the feature network's output is not finite for 400 images"):
        compute(Evidence([draw(0)], draw(1), [draw(2)], {"broken": Broken()}), CONFIG)


def test_shares_of_classes_are_given_for_networks_that_know_the_classes_of_the_data() -> None:
    fake = draw(0)
    networks = {"own": Pixels(), "foreign": Pixels()}
    values = compute(Evidence([fake], draw(1), [draw(2)], networks, labelled={"own"}), CONFIG)
    shares = [int((Pixels()(fake)[1].argmax(dim=1) == label).sum()) / 400 for label in range(4)]
    assert values["class_share_min_own"] == [min(shares)]
    assert values["class_share_max_own"] == [max(shares)]
    assert "isc_foreign" in values
    assert not [name for name in values if "class_share" in name and name.endswith("foreign")]


@pytest.mark.fault(20)
def test_fewer_samples_than_features_are_marked_unreliable() -> None:
    class Wide(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return images.flatten(1).float().repeat(1, 30), images.flatten(1)[:, :4].float()

    first, second, third = (draw(seed, count=60) for seed in range(3))
    config = CONFIG.model_copy(update={"kid_subset_size": 60})
    assert compute(Evidence([first], second, [third], {"wide": Wide()}, {}), config)["fid_wide_reliable"] == [0]
