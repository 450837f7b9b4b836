"""Image quality: FID, KID, Inception Score, precision and recall of uint8 images, by torch-fidelity's formulas.

Heusel et al. 2017 (FID), Chong and Forsyth 2020 (FID extrapolated to infinitely many samples), Binkowski et al. 2018
(KID, unbiased), Salimans et al. 2016 (IS), Kynkaanniemi et al. 2019 (precision and recall). Each number is named
<metric>_<feature network> and stands beside its floor: the same metric of real training images against the same real
test images, with the same counts, once for each disjoint set of training images. Lower is better for FID and KID.
fid_ratio is FID over its floor, set by set, so that its interval has the floor's chance in it. Every image passes each
network once.

Per-image scores of a model with a likelihood (`scores`: elbo, iw, kl in nats) are averaged, with standard errors.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from pipeline.artifacts import ArtifactError
from pipeline.evidence import features
from pipeline.evidence.features import Evidence, Sampling, check_evidence, extract, name_metric
from pipeline.params import Measure, Params

KIND = "images"
NETWORK = "optional"  # for likelihoods alone
ERRORS = "test images"  # what a standard error <metric>_se is over
SPLITS = ("test", "train")  # the second one makes the floors
COUNTS = ("samples", "floor_sets")  # scores are of the whole test split
NUMBERS = (
    "features, FID's means, KID, distances and log-likelihoods float32; "
    "FID's covariances, Inception Score, bounds and means of scores float64"
)
SHARES = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # of the images, from which FID is extrapolated


class Config(Measure):
    """How image quality is measured."""

    sampling: Sampling
    kid_subsets: int = Field(ge=1, description="subsets that KID is averaged over")
    kid_subset_size: int = Field(ge=2, description="images a subset; at most as many as are compared")
    neighbours: int = Field(ge=1, description="k of the nearest-neighbour manifolds of precision and recall")
    isc_splits: int = Field(ge=1, description="splits of the Inception Score")


def gather(key: str, settings: Params, circumstances: Mapping[str, Any]) -> Evidence:
    """Read what the metrics of a run rest on."""
    return features.gather(key, settings, circumstances, floors=True, channelwise=False)


def compute(evidence: Evidence, config: Config) -> dict[str, list[float]]:
    """Return every metric of every network: floors for each training set, counts and scores once, others for each set.

    Raises:
        ArtifactError: if the images are nonsense, too few for the config, or a network's output is not finite.
    """
    check_evidence(evidence)
    for key in ("kid_subset_size", "isc_splits"):
        if (value := getattr(config, key)) > len(evidence.test):
            msg = f"metrics.images.{key}: expected at most {len(evidence.test)}, the images compared, got {value}"
            raise ArtifactError(msg)
    values: dict[str, list[float]] = {"samples": [float(len(evidence.test))]}
    if evidence.networks:
        values["floor_sets"] = [float(len(evidence.train))]
    for name, network in evidence.networks.items():
        test = evidence.extract_real(name, evidence.test)
        reference = fid_features_to_statistics(test.features)
        floors = [measure_floor(evidence, name, images, test.features, config) for images in evidence.train]
        found: list[dict[str, float]] = []
        for images, floor in zip(evidence.generated, itertools.cycle(floors), strict=False):
            generated = extract(network, images)
            distances = measure(generated.features, test.features, config, reference)
            ratio = {"fid_ratio": distances["fid"] / floor["fid"]}
            shares = share_classes(generated.logits) if name in evidence.labelled else {}
            found.append(distances | ratio | score_classes(generated.logits, config) | shares)
        # Else the covariance is singular and FID is mostly bias.
        reliable = len(evidence.test) > test.features.size(1)
        # IS has no reference set: its counterpart is the value of real test images.
        real = {"isc_real": score_classes(test.logits, config)["isc"], "fid_reliable": float(reliable)}
        values |= {name_metric(f"{metric}_floor", name): [entry[metric] for entry in floors] for metric in floors[0]}
        values |= {name_metric(metric, name): [entry[metric] for entry in found] for metric in found[0]}
        values |= {name_metric(metric, name): [value] for metric, value in real.items()}
    for name, score in evidence.scores.items():
        values[name] = [float(score.double().mean())]
        if score.ndim:
            values["scored_images"] = [float(len(score))]
            values[f"{name}_se"] = [float(score.double().std() / len(score) ** 0.5)]
    return values


def measure_floor(evidence: Evidence, name: str, images: Tensor, test: Tensor, config: Config) -> dict[str, float]:
    """Measure training images (N, C, H, W) against the features (N, D) of the test images.

    It is the same for every model, and may be known from another evaluation.
    """

    def make(pair: Tensor) -> dict[str, Tensor]:
        found = measure(pair[0], pair[1], config)
        return {metric: torch.tensor(value, dtype=torch.float64) for metric, value in found.items()}

    pair = torch.stack([evidence.extract_real(name, images).features, test])
    made = evidence.recall({"network": name, "floor": config.model_dump(exclude={"sampling"})}, pair, make)
    return {metric: value.item() for metric, value in made.items()}


def measure(
    features: Tensor, reference: Tensor, config: Config, statistics: dict[str, np.ndarray] | None = None
) -> dict[str, float]:
    """Return fid, fid_infinity, kid, kid_subset_std, precision and recall of features (N, D) and (M, D).

    statistics: the reference's mean and covariance, if they are known already.
    """
    if statistics is None:
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
