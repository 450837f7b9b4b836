"""Image quality: FID, KID, Inception Score, precision and recall of uint8 images, by torch-fidelity's formulas.

Heusel et al. 2017 (FID), Chong and Forsyth 2020 (FID extrapolated to infinitely many samples), Binkowski et al. 2018
(KID, unbiased), Salimans et al. 2016 (IS), Kynkaanniemi et al. 2019 (precision and recall). Each number is named
<metric>_<feature network> and stands beside its floor: the same metric of real training images against the same real
test images, with the same counts. Lower is better for FID and KID. Every image passes each network once.

Per-image scores of a model with a likelihood (`scores`: elbo, iw, kl in nats) are averaged, with standard errors.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from pipeline.artifacts import ArtifactError
from pipeline.params import Section

KIND = "images"
ERRORS = "test images"  # what a standard error <metric>_se is over
LEAST = 50
SHARES = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # of the images, from which FID is extrapolated


class Sampling(Section):
    """What the stage `sample` draws."""

    count: int = Field(ge=LEAST, description="images; at most as many as the test and the training split hold")
    sets: int = Field(ge=1, description="independent sets of so many images; metrics are means over them")
    importance_samples: int = Field(ge=1, description="K of a likelihood model's importance-weighted bound")


class Config(Section):
    """How image quality is measured."""

    sampling: Sampling
    kid_subsets: int = Field(ge=1, description="subsets that KID is averaged over")
    kid_subset_size: int = Field(ge=2, description="images a subset; at most as many as are compared")
    neighbours: int = Field(ge=1, description="k of the nearest-neighbour manifolds of precision and recall")
    isc_splits: int = Field(ge=1, description="splits of the Inception Score")


@dataclass(frozen=True)
class Evidence:
    """What the numbers rest on.

    generated: S independent sets of uint8 images (N, C, H, W); test, train: as many real ones. networks: by name,
    modules that map uint8 images (B, C, H, W) to features (B, D) and class logits (B, K). scores: a model's scores by
    name, float64 (N,) or scalars. labelled: the networks whose classes are those of the images.
    """

    generated: Sequence[Tensor]
    test: Tensor
    train: Tensor
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    labelled: Collection[str] = ()


def check_images(name: str, images: Tensor, least: int = LEAST) -> None:
    """Refuse what would give a plausible number for nonsense.

    Raises:
        ArtifactError: if the images are not uint8, with the range found; if their shape is not (N, 1 or 3, H, W), they
            are too few, all of one value, or without a value above 1.
    """
    if images.dtype != torch.uint8:
        broken = int((~images.isfinite()).sum()) if images.is_floating_point() else 0
        found = f"{images.dtype} in [{float(images.min()):.3g}, {float(images.max()):.3g}], {broken} not finite"
        msg = f"{name}: expected uint8 images in [0, 255], got {found}"
        raise ArtifactError(msg)
    if images.ndim != 4 or images.size(1) not in {1, 3}:
        msg = f"{name}: expected images (N, 1 or 3, H, W), got {tuple(images.shape)}"
        raise ArtifactError(msg)
    if len(images) < least:
        msg = f"{name}: {len(images)} images are too few, expected {least} or more"
        raise ArtifactError(msg)
    if images.min() == images.max():
        msg = f"{name}: every pixel of all {len(images)} images is {int(images.min())}"
        raise ArtifactError(msg)
    if images.max() <= 1:
        msg = f"{name}: expected images in [0, 255], got {len(images)} images without a value above 1"
        raise ArtifactError(msg)


class Features(NamedTuple):
    """What a network made of N images: features float32 (N, D), class logits float32 (N, K)."""

    features: Tensor
    logits: Tensor


def compute(evidence: Evidence, config: Config) -> dict[str, list[float]]:
    """Return every metric of every network, one value a generated set; floors, counts and scores have one value.

    Raises:
        ArtifactError: if the images are nonsense, too few for the config, or a network's output is not finite.
    """
    _check(evidence, config)
    values: dict[str, list[float]] = {"samples": [float(len(evidence.test))]}
    for name, network in evidence.networks.items():
        test, train = extract(network, evidence.test), extract(network, evidence.train)
        floors = measure(train.features, test.features, config)
        found: list[dict[str, float]] = []
        for images in evidence.generated:
            generated = extract(network, images)
            distances = measure(generated.features, test.features, config)
            ratio = {"fid_ratio": distances["fid"] / floors["fid"]}
            shares = share_classes(generated.logits) if name in evidence.labelled else {}
            found.append(distances | ratio | score_classes(generated.logits, config) | shares)
        # Else the covariance is singular and FID is mostly bias.
        reliable = len(evidence.test) > test.features.size(1)
        # IS has no reference set: its counterpart is the value of real test images.
        real = {"isc_real": score_classes(test.logits, config)["isc"], "fid_reliable": float(reliable)}
        real |= {f"{metric}_floor": value for metric, value in floors.items()}
        values |= {_name(metric, name): [entry[metric] for entry in found] for metric in found[0]}
        values |= {_name(metric, name): [value] for metric, value in real.items()}
    for name, score in evidence.scores.items():
        values[name] = [float(score.double().mean())]
        if score.ndim:
            values[f"{name}_se"] = [float(score.double().std() / len(score) ** 0.5)]
    return values


def _name(metric: str, network: str) -> str:
    """Put the network behind the metric's first word: fid_floor of classifier is fid_classifier_floor."""
    for suffix in ("_floor", "_real", "_ratio", "_reliable"):
        if metric.endswith(suffix):
            return f"{metric.removesuffix(suffix)}_{network}{suffix}"
    return f"{metric}_{network}"


def _check(evidence: Evidence, config: Config) -> None:
    named = {f"generated set {index}": images for index, images in enumerate(evidence.generated)}
    for name, images in {**named, "test": evidence.test, "train": evidence.train}.items():
        check_images(name, images)
        if images.shape != evidence.generated[0].shape:
            msg = f"{name}: expected the shape of the generated images {tuple(evidence.generated[0].shape)}, "
            raise ArtifactError(msg + f"got {tuple(images.shape)}")
    for key in ("kid_subset_size", "isc_splits"):
        if (value := getattr(config, key)) > len(evidence.test):
            msg = f"metrics.images.{key}: expected at most {len(evidence.test)}, the images compared, got {value}"
            raise ArtifactError(msg)


@torch.inference_mode()
def extract(network: nn.Module, images: Tensor) -> Features:
    """Pass uint8 images (N, C, H, W) through a network, in batches of 250, on the network's device."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    parts = [network(part.to(device)) for part in images.split(250)]
    features, logits = (torch.cat([part[index] for part in parts]).float().cpu() for index in (0, 1))
    if not (features.isfinite().all() and logits.isfinite().all()):
        msg = f"{type(network).__name__}: the feature network's output is not finite for {len(images)} images"
        raise ArtifactError(msg)
    return Features(features, logits)


def measure(features: Tensor, reference: Tensor, config: Config) -> dict[str, float]:
    """Return fid, fid_infinity, kid, kid_subset_std, precision and recall of features (N, D) and (M, D)."""
    statistics = fid_features_to_statistics(reference)
    kid = kid_features_to_metric(
        features,
        reference,
        kid_subsets=config.kid_subsets,
        kid_subset_size=config.kid_subset_size,
        rng_seed=2020,
        verbose=False,
    )
    manifold = prc_features_to_metric(
        features,
        reference,
        prc_neighborhood=config.neighbours,
        prc_batch_size=10_000,
        save_cpu_ram=True,
        verbose=False,
    )
    fids = {share: measure_fid(features[: round(share * len(features))], statistics) for share in SHARES}
    return {
        "fid": fids[1.0],
        "fid_infinity": extrapolate({share * len(features): fid for share, fid in fids.items()}),
        "kid": float(kid["kernel_inception_distance_mean"]),
        "kid_subset_std": float(kid["kernel_inception_distance_std"]),
        "precision": float(manifold["precision"]),
        "recall": float(manifold["recall"]),
    }


def measure_fid(features: Tensor, reference: dict[str, np.ndarray]) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features (N, D) and a reference's mean and covariance."""
    found = fid_statistics_to_metric(fid_features_to_statistics(features), reference, verbose=False)
    return float(found["frechet_inception_distance"])


def extrapolate(fids: Mapping[float, float]) -> float:
    """Return the intercept of the line through FID over 1 / N: FID without the bias of few generated images.

    Chong and Forsyth 2020. The reference keeps its own bias, so this compares runs that face the same reference.
    """
    slope_and_intercept = np.polyfit([1 / count for count in fids], list(fids.values()), 1)
    return float(slope_and_intercept[1])


def score_classes(logits: Tensor, config: Config) -> dict[str, float]:
    """Return the Inception Score of logits (N, K) and its standard deviation over splits."""
    score = isc_features_to_metric(logits, splits=config.isc_splits)
    return {"isc": float(score["inception_score_mean"]), "isc_split_std": float(score["inception_score_std"])}


def share_classes(logits: Tensor) -> dict[str, float]:
    """Return the smallest and the largest share of images that a class gets, from logits (N, K)."""
    shares = torch.bincount(logits.argmax(dim=1), minlength=logits.size(1)).double() / len(logits)
    return {"class_share_min": float(shares.min()), "class_share_max": float(shares.max())}
