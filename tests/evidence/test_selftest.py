"""The self-test passes on sound features of real digits, and fails on features that cannot see what it checks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from pipeline.evidence.features import Evidence
from pipeline.evidence.selftest import check_all, check_dropped_classes, check_order, measure_distances
from pipeline.metrics import modes, points
from pipeline.metrics.images import Config

CONFIG = Config.model_validate(
    {
        "sampling": {"count": 1000, "sets": 1, "importance_samples": 1},
        "kid_subsets": 2,
        "kid_subset_size": 100,
        "neighbours": 3,
        "isc_splits": 2,
    }
)


class Coarse(nn.Module):
    """49 features: means of 4x4 pixels."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means = functional.avg_pool2d(images.float(), 4).flatten(1) / 255
        return means, means[:, :10]


class Blind(nn.Module):
    """Features that hold a tenth of an image's brightness and else the same for every image, but for tiny noise."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = images.float().mean(dim=(1, 2, 3)) / 2550
        features = mean[:, None] * torch.linspace(0.9, 1.1, 4)
        return features, features


@pytest.fixture(scope="module")
def digits(digits: Path) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    train, test = (load_file(digits / "prepared" / "images" / f"{split}.safetensors") for split in ("train", "test"))
    order = torch.randperm(len(train["images"]), generator=torch.Generator().manual_seed(0))[:1000]
    return (train["images"][order], test["images"]), (train["labels"][order], test["labels"])


def test_every_check_holds_for_features_that_see_the_digits(
    digits: tuple[tuple[torch.Tensor, torch.Tensor], ...],
) -> None:
    checks = list(check_all(Coarse(), *digits, CONFIG))
    assert len(checks) == 6
    assert [check for check in checks if not check.holds] == []


def test_features_that_see_brightness_alone_fail_the_check_of_dropped_modes(
    digits: tuple[tuple[torch.Tensor, torch.Tensor], ...],
) -> None:
    failed = {check.name for check in check_all(Blind(), *digits, CONFIG) if not check.holds}
    assert "dropped modes" in failed


def test_of_one_class_none_is_dropped(digits: tuple[tuple[torch.Tensor, torch.Tensor], ...]) -> None:
    images, (train_labels, test_labels) = digits
    checks = {check.name: check for check in check_all(Coarse(), images, (train_labels * 0, test_labels * 0), CONFIG)}
    assert checks["dropped modes"].found == "one class, none to drop"
    assert checks["dropped modes"].holds


def test_the_upper_half_of_the_classes_that_are_there_is_dropped(
    digits: tuple[tuple[torch.Tensor, torch.Tensor], ...],
) -> None:
    (train, test), (labels, _) = digits
    features, reference = (Coarse()(images)[0] for images in (train, test))
    base = measure_distances(features, reference, CONFIG)
    plain = check_dropped_classes(features, reference, labels, base, CONFIG)
    far = check_dropped_classes(features, reference, labels + 10, base, CONFIG)  # no class of a lower half is there
    assert plain.holds
    assert far == plain


def make_points() -> tuple[points.Evidence, points.Config]:
    """Points sorted by their mode, more than the real ones that they are compared with."""
    means = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    noise = 0.01 * torch.randn(3, 500, 2, generator=torch.Generator().manual_seed(0))
    generated = (means[:, None] + noise).flatten(0, 1)
    config = points.Config(sampling=points.Sampling(count=100, sets=1), deviations=3.0)
    return points.Evidence([generated, generated.flip(0)], generated[::3], means, 0.01), config


def make_modes() -> tuple[Evidence, modes.Config]:
    pictures = torch.randint(256, (120, 3, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    pictures = pictures.sort(dim=0).values
    config = modes.Config.model_validate({"sampling": {"count": 100, "sets": 1, "importance_samples": 1}})
    return Evidence([pictures], pictures, [], {"coarse": Coarse()}), config


@pytest.mark.parametrize(("metric", "make"), [(points, make_points), (modes, make_modes)])
def test_the_order_of_the_samples_changes_no_value_of_a_metric(metric: Any, make: Callable[[], Any]) -> None:
    check = check_order(metric.compute, *make())
    assert check.holds, check.found
    assert check.found == "unchanged"


def test_a_metric_that_takes_the_first_samples_is_found_out() -> None:
    def compute(evidence: Any, config: Any) -> dict[str, list[float]]:
        del config
        return {
            "sound": [float(each.sum(dtype=torch.float64)) for each in evidence.generated],
            "planted": [float(each[:50].mean()) for each in evidence.generated],
        }

    check = check_order(compute, *make_points())
    assert not check.holds
    assert check.found.count("planted") == 2
    assert "sound" not in check.found
