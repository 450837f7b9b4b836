"""FID by the pipeline against scipy's matrix root and torch-fidelity, and how far they agree."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import scipy.linalg
import torch
from torch import Tensor
from torch.utils.data import Subset
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from pipeline import artifacts
from pipeline.evidence import real_cache
from pipeline.evidence.features import extract
from pipeline.history.record import describe_environment
from pipeline.metrics.images import measure_fid
from pipeline.networks.classifier import load_features
from pipeline.randomness import make_generator
from speed.timing import Row, compare, time_it


def measure(count: int = 4000) -> Iterator[Row]:
    """FID by the pipeline against scipy's matrix root and torch-fidelity, and how far they agree."""
    for size in (128, 1024):
        features = [torch.randn(count, size, generator=make_generator(index, "speed")) + index / 10 for index in (0, 1)]
        first, second = (fid_features_to_statistics(part) for part in features)

        def theirs() -> float:
            root = scipy.linalg.sqrtm(first["sigma"] @ second["sigma"]).real  # noqa: B023
            gap = first["mu"] - second["mu"]  # noqa: B023
            return float(gap @ gap + np.trace(first["sigma"] + second["sigma"] - 2 * root))  # noqa: B023

        library = float(fid_statistics_to_metric(first, second, verbose=False)["frechet_inception_distance"])
        values = measure_fid(features[0], second), library, theirs()
        gaps = [abs(value - values[0]) / values[0] for value in values[1:]]
        detail = f"relative differences {gaps[0]:.1g} of torch-fidelity, {gaps[1]:.1g} of scipy"
        ways = partial(time_it, lambda: measure_fid(features[0], second)), partial(time_it, theirs)  # noqa: B023
        title = f"FID in {size} dimensions against scipy's matrix root"
        about = f"{count:,} features a side"
        yield compare(f"fid_{size}_over_scipy", title, "< 1", ways, count=about, seeds=(0, 1), detail=detail, repeats=3)
    yield compare_features()
    yield compare_images()


class Classifier(FeatureExtractorBase):
    """The feature network mnist_classifier as torch-fidelity takes one."""

    def __init__(self, name: str, features_list: list[str], **settings: object) -> None:
        super().__init__(name, features_list)
        self.network = load_features(artifacts.NETWORKS / "mnist_classifier")

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Name the layers."""
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Name the layer that FID compares; torch-fidelity asks for no other metric here."""
        del metric
        return "features"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features of uint8 images."""
        return (self.network(images)[0],)


def read_pictures(count: int) -> tuple[Tensor, Tensor]:
    """Return training images of MNIST, in the place of generated ones, and as many test images."""
    generated, real = (artifacts.read_split("mnist", split)["images"][:count] for split in ("train", "test"))
    return generated, real


def compare_features(count: int = 10_000) -> Row:
    """FID from features that are there, where the pipeline knows the real side's statistics."""
    network = load_features(artifacts.NETWORKS / "mnist_classifier")
    features, reference = (extract(network, images).features for images in read_pictures(count))
    known = fid_features_to_statistics(reference)

    def ours() -> float:
        return measure_fid(features, known)

    def theirs() -> float:
        both = fid_features_to_statistics(features), fid_features_to_statistics(reference)
        return float(fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"])

    title = "FID from features in 128 dimensions, real side's statistics known, against torch-fidelity from both sides"
    return compare_values("fid_features_over_torch_fidelity", title, (ours, theirs), f"{count:,} features a side")


def compare_images(count: int = 10_000) -> Row:
    """FID of one set of images, where the pipeline remembers the real side's features as the stage `evaluate` does."""
    generated, real = read_pictures(count)
    folder = artifacts.NETWORKS / "mnist_classifier"

    def ours() -> float:
        network = load_features(folder)
        weights = artifacts.digest(artifacts.find_weights(folder))
        about = {"weights": weights, **describe_environment(), "code": "benchmark"}
        kept = real_cache.recall(about, real, lambda given: extract(network, given)._asdict())
        known = fid_features_to_statistics(kept["features"])
        return measure_fid(extract(network, generated).features, known)

    def theirs() -> float:
        found = calculate_metrics(
            input1=Subset(generated, range(count)),
            input2=Subset(real, range(count)),
            fid=True,
            feature_extractor="mnist_classifier",
            batch_size=250,  # as `extract`
            save_cpu_ram=True,  # no worker processes: for images in memory it is faster without
            cuda=torch.cuda.is_available(),
            cache=False,
            verbose=False,
        )
        return float(found["frechet_inception_distance"])

    register_feature_extractor("mnist_classifier", Classifier)
    with tempfile.TemporaryDirectory() as kept, mock.patch.object(real_cache, "FOLDER", Path(kept)):
        title = "FID from images, real side's features remembered, against torch-fidelity, which extracts both sides"
        name, about = "fid_images_over_torch_fidelity", f"{count:,} images a side"
        return compare_values(name, title, (ours, theirs), about, repeats=3)


def compare_values(
    name: str, title: str, ways: tuple[Callable[[], float], Callable[[], float]], count: str, *, repeats: int = 5
) -> Row:
    """Compare two ways to one value, which must agree to a millionth; each is called once before it is timed."""
    first, second = (way() for way in ways)
    gap = abs(first - second) / second
    assert gap <= 1e-6, f"{name}: {first} against {second}"
    detail = f"FID {first:.6g}, relative difference {gap:.1g}"
    timed = partial(time_it, ways[0]), partial(time_it, ways[1])
    return compare(name, title, "< 1", timed, count=count, seeds=(), detail=detail, repeats=repeats)
