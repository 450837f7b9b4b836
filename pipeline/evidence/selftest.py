"""Self-test of the image metrics on real images, where the right answer is known.

Each check returns what was expected, what was found, and whether it holds. `pipeline doctor metrics` prints them.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from pipeline.evidence.features import Evidence, extract
from pipeline.metrics import images as metrics
from pipeline.metrics.images import Config
from pipeline.params import Measure
from pipeline.randomness import make_generator

METRIC = "images"  # the metric that is tested, and the kind of the data set that it is tested on
FIELD, LABELS = "images", "labels"  # of that data set
COUNTS = (100, 200, 400, 700, 1000)
DRAWS = 4  # random samples of each count


@dataclass(frozen=True)
class Check:
    """One property of the metrics, with its evidence."""

    name: str
    expected: str
    found: str
    holds: bool


def check_all(
    network: nn.Module, images: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], config: Config
) -> Iterator[Check]:
    """Check a feature network's metrics on two independent sets of real images.

    Args:
        network: maps uint8 images to features and logits.
        images: training and test images, uint8 (N, C, H, W), of equal count.
        labels: their classes, int64 (N,).
        config: neighbours and subsets.
    """
    train, test = (extract(network, part).features for part in images)
    base = measure_distances(train, test, config)
    yield check_identity(test, config)
    fewer = {key: min(getattr(config, key), len(test)) for key in ("kid_subset_size", "isc_splits")}
    evidence = Evidence([images[0]], images[1], [images[0]], {"network": network}, labelled=["network"])
    yield check_order(metrics.compute, evidence, config.model_copy(update=fewer))
    yield check_dropped_classes(train, test, labels[0], base, config)
    yield check_noise(network, images[0], test, base, config)
    yield check_bias(train, test, config)
    yield check_torchmetrics(network, images, base)


def measure_distances(features: Tensor, reference: Tensor, config: Config) -> dict[str, float]:
    """Measure features (N, D) against (M, D); fewer images than params.yaml counts on make smaller KID subsets."""
    size = min(config.kid_subset_size, len(features), len(reference))
    return metrics.measure_distances(features, reference, config.model_copy(update={"kid_subset_size": size}))


def check_identity(test: Tensor, config: Config) -> Check:
    """A set has no distance to itself."""
    same = measure_distances(test, test, config)
    holds = abs(same["fid"]) < 1e-2 and same["precision"] == same["recall"] == 1
    return Check("identity", "FID 0, precision and recall 1", format_values(same), holds)


def check_order(compute: Callable[[Any, Any], dict[str, list[float]]], evidence: Any, config: Measure) -> Check:
    """The order of the samples changes no value of a metric.

    Args:
        compute: of the metric.
        evidence: what it computes of, with sets of samples in `generated`; `given`, if it has that, goes with them.
        config: of the metric.
    """
    orders = [torch.randperm(len(each), generator=make_generator(0, "order")) for each in evidence.generated]
    moved = {
        name: [each[order] for each, order in zip(sets, orders, strict=True)]
        for name in ("generated", "given")
        if (sets := getattr(evidence, name, ()))
    }
    before, after = compute(evidence, config), compute(replace(evidence, **moved), config)
    changed = [
        f"{name} {old:.6g} became {new:.6g}"
        for name, values in before.items()
        for old, new in zip(values, after[name], strict=True)
        if not math.isclose(old, new, rel_tol=1e-4, abs_tol=1e-4)
    ]
    return Check("shuffling", f"{len(before)} values unchanged", "; ".join(changed) or "unchanged", holds=not changed)


def check_dropped_classes(train: Tensor, test: Tensor, labels: Tensor, base: dict[str, float], config: Config) -> Check:
    """Half of the classes that are there gone, the upper one: recall falls, precision does not, FID rises."""
    name, expected = "dropped modes", f"recall far below, precision not below {format_values(base)}"
    classes = labels.unique()  # in rising order
    if len(classes) < 2:
        return Check(name, expected, "one class, none to drop", holds=True)
    kept = train[torch.isin(labels, classes[: len(classes) // 2])]
    dropped = measure_distances(kept, test, config)
    holds = (
        dropped["recall"] < base["recall"] - 0.1
        and dropped["precision"] > base["precision"] - 0.05
        and dropped["fid"] > 2 * base["fid"]
    )
    return Check(name, expected, format_values(dropped), holds)


def check_noise(network: nn.Module, images: Tensor, test: Tensor, base: dict[str, float], config: Config) -> Check:
    """Noise lowers precision and raises FID, the more the stronger it is."""
    found = [base]
    for deviation in (30.0, 100.0):
        generator = make_generator(0, "noise", int(deviation))
        noise = deviation * torch.randn(images.shape, generator=generator)
        noisy = (images.float() + noise).round().clamp(0, 255).byte()
        found.append(measure_distances(extract(network, noisy).features, test, config))
    rising = all(before["fid"] < after["fid"] for before, after in itertools.pairwise(found))
    holds = rising and found[-1]["precision"] < base["precision"] - 0.1
    return Check(
        "noise",
        f"FID rises and precision falls from {format_values(base)}",
        "; ".join(map(format_values, found[1:])),
        holds,
    )


def check_bias(train: Tensor, test: Tensor, config: Config) -> Check:
    """FID of few samples is too high; its extrapolation to infinitely many is less so: means over random samples."""
    counts = [count for count in COUNTS if count <= len(train)]
    if len(counts) < 2:
        few = f"not checked: {len(train)} training examples, {COUNTS[1]} are needed"
        return Check("bias by count", "FID falls with the count; extrapolated, less", few, holds=True)
    orders = [torch.randperm(len(train), generator=make_generator(0, "bias", draw)) for draw in range(DRAWS)]
    found = [[measure_distances(train[order[:count]], test, config) for order in orders] for count in counts]
    fids, extrapolated = (
        [sum(values[name] for values in draws) / DRAWS for draws in found] for name in ("fid", "fid_infinity")
    )
    errors = [max(abs(value - fids[-1]) for value in values[:-1]) for values in (fids, extrapolated)]
    texts = ", ".join(f"{count}: {fid:.3g}" for count, fid in zip(counts, fids, strict=True))
    holds = fids == sorted(fids, reverse=True) and errors[1] < errors[0]
    return Check("bias by count", "FID falls with the count; extrapolated, less", f"FID by count {texts}", holds)


def check_torchmetrics(network: nn.Module, images: tuple[Tensor, Tensor], base: dict[str, float]) -> Check:
    """Torchmetrics gives the same FID of the same features."""

    class Wrapped(nn.Module):
        num_features = extract(network, images[0][:2]).features.size(1)

        def forward(self, batch: Tensor) -> Tensor:
            return extract(network, batch).features

    channels, height, width = images[0].shape[1:]
    metric = FrechetInceptionDistance(feature=Wrapped(), input_img_size=(channels, height, width)).set_dtype(
        torch.float64
    )
    for part, real in zip(images, (False, True), strict=True):
        for batch in part.split(250):
            metric.update(batch, real=real)
    theirs = float(metric.compute())
    holds = abs(theirs - base["fid"]) < 1e-3 * base["fid"]
    return Check("torchmetrics", f"FID {base['fid']:.6g} of torch-fidelity", f"{theirs:.6g}", holds)


def format_values(values: dict[str, float]) -> str:
    """Return FID, precision and recall as text."""
    return f"FID {values['fid']:.3g}, P {values['precision']:.3f}, R {values['recall']:.3f}"
