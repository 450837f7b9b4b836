"""Image quality: FID, KID, Inception Score, precision and recall of uint8 images, by torch-fidelity's formulas.

Heusel et al. 2017 (FID), Chong and Forsyth 2020 (FID extrapolated to infinitely many samples), Binkowski et al. 2018
(KID, unbiased), Salimans et al. 2016 (IS), Kynkaanniemi et al. 2019 (precision and recall). Each number is named
<metric>_<feature network> and comes with its floor: the same metric of real training images against the same real
test images, with the same counts, once for each disjoint set of training images. Lower is better for FID and KID.
fid_ratio is FID over its floor, set by set, so that its interval covers the floor's noise too. Every image passes each
network once.

Per-image scores of a model with a likelihood (`scores`: elbo, iw, kl in nats) are averaged, with standard errors. The
bits per dimension are those of 256 grey levels, of some test images; a model of binarised images has none.
"""

import itertools
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from pipeline.artifacts import ArtifactError
from pipeline.evidence import features
from pipeline.evidence.features import Evidence, Sampling, check_evidence, extract
from pipeline.evidence.values import SETS, Value, fill_name, find_companion, find_count, find_value
from pipeline.params import NONE, Known, Measure, Params
from pipeline.randomness import make_generator, shuffle

KIND = "images"
NETWORK = "optional"  # likelihoods need none
SPLITS = ("test", "train")  # the second one makes the floors
NUMBERS = {
    "features": "float32",
    "fid": "means float32, covariances float64",
    "kid": "float32",
    "distances": "float32",
    "isc": "float64",
    "scores": "log-likelihoods float32, bounds and means float64",
}
PARTS = (2, 4)  # halves and quarters of the images, from which FID is extrapolated

# Fields of the protocol: those of images that a feature network sees, ...
SEEN = ("network", "code.network", "numbers.features", "counts.samples")
GENERATED = (*SEEN, "metric.sampling.sets", "metric.sampling.labels")
TEST = (*SEEN, "reference.sha256.test")
FLOOR = (*TEST, "reference.sha256.train", "counts.floor_sets")
# ... those of a calculation with their features, ...
FID = ("numbers.fid", "versions.numpy", "versions.torch-fidelity")
KID = ("metric.kid_subsets", "metric.kid_subset_size", "numbers.kid", "versions.numpy", "versions.torch-fidelity")
NEAREST = ("metric.neighbours", "numbers.distances", "versions.torch-fidelity")
ISC = ("metric.isc_splits", "numbers.isc", "versions.numpy", "versions.torch-fidelity")
FLOORS = {"fid": FID, "fid_infinity": FID, "kid": KID, "precision": NEAREST, "recall": NEAREST}
# ... and those of a model's scores.
SCORED = ("scores", "numbers.scores", "reference.sha256.test")
BOUND = (*SCORED, "metric.sampling.importance_samples")
# Bits are comparable between models: their kind of bound is no field. Those of a flow are computed without samples.
LEVELS = (*SCORED, "counts.bits_images")
BITS = ("scores.levels", *BOUND[1:], "counts.bits_images")
MOST_CHANGED = 0.01  # bits per dimension, by twice as many evaluations; above, the likelihood is not reliable


def _sample(depends: tuple[str, ...], **others: Any) -> Value:
    """Declare a value of generated images."""
    return Value(over=SETS, counts="samples", depends=(*GENERATED, *depends), **others)


def _bound(**others: Any) -> Value:
    """Declare a mean over test images of a score that is drawn."""
    return Value(unit="nats per image", counts="scored_images", depends=BOUND, **others)


VALUES = {
    "samples": Value(role="count", unit="samples", headline=True, in_protocol=True),
    "fid_{network}": _sample((*TEST, *FID), direction="lower", headline=True),
    "fid_{network}_ratio": _sample((*FLOOR, *FID), direction="lower", headline=True),
    "precision_{network}": _sample((*TEST, *NEAREST), direction="higher", unit="share", headline=True),
    "recall_{network}": _sample((*TEST, *NEAREST), direction="higher", unit="share", headline=True),
    "iw{samples}_nats": _bound(direction="lower", headline=True),
    "elbo_nats": _bound(direction="lower", headline=True),
    "kl_nats": _bound(),
    "bits_per_dim": Value(
        direction="lower", unit="bits per dimension", headline=True, counts="bits_images", depends=BITS
    ),
    "levels_nats": Value(direction="lower", unit="nats per image", counts="bits_images", depends=LEVELS),
    "bits_per_dim_change": Value(
        role="description", unit="bits, by twice the evaluations", counts="bits_images", depends=LEVELS
    ),
    "bits_images": Value(role="count", unit="images", in_protocol=True),
    "bits_per_dim_reliable": Value(role="check", of="bits_per_dim", depends=("scores",)),
    "fid_infinity_{network}": _sample((*TEST, *FID), direction="lower"),
    "kid_{network}": _sample((*TEST, *KID), direction="lower"),
    "isc_{network}": _sample(ISC, direction="higher"),
    "class_share_min_{network}": _sample((), role="description", unit="share"),
    "class_share_max_{network}": _sample((), role="description", unit="share"),
    "active_units": Value(role="description", unit="latent units", counts="scored_images", depends=SCORED),
    "codes_used": Value(role="description", unit="share of the codes", counts="scored_images", depends=SCORED),
    "code_perplexity": Value(role="description", unit="codes", counts="scored_images", depends=SCORED),
    "floor_sets": Value(role="count", unit="sets", in_protocol=True),
    "scored_images": Value(role="count", unit="images"),  # always the whole test split
    "fid_{network}_reliable": Value(role="check", of="fid_{network}", depends=SEEN),
    "isc_{network}_real": Value(role="real", of="isc_{network}", depends=(*TEST, *ISC)),
    "isc_split_std_{network}": Value(
        role="spread", of="isc_{network}", over="splits of the images", depends=(*GENERATED, *ISC)
    ),
    "kid_subset_std_{network}": Value(
        role="spread", of="kid_{network}", over="subsets of the images", depends=(*GENERATED, *TEST, *KID)
    ),
    "kid_subset_std_{network}_floor": Value(role="floor", of="kid_subset_std_{network}", depends=(*FLOOR, *KID)),
    **{
        f"{metric}_{{network}}_floor": Value(role="floor", of=f"{metric}_{{network}}", depends=(*FLOOR, *depends))
        for metric, depends in FLOORS.items()
    },
    **{
        f"{score}_se": Value(role="error", of=score, over="test images", depends=BOUND)
        for score in ("iw{samples}_nats", "elbo_nats", "kl_nats")
    },
    "bits_per_dim_se": Value(role="error", of="bits_per_dim", over="test images", depends=BITS),
    "levels_nats_se": Value(role="error", of="levels_nats", over="test images", depends=LEVELS),
}


class Config(Measure):
    """How image quality is measured."""

    sampling: Sampling
    kid_subsets: int = Field(ge=1, description="subsets that KID is averaged over")
    kid_subset_size: int = Field(ge=2, description="images per subset; at most as many as are compared")
    neighbours: int = Field(ge=1, description="k of the nearest-neighbour manifolds of precision and recall")
    isc_splits: int = Field(ge=1, description="splits of the Inception Score")

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if excess := self.find_excess(self.sampling.count):
            raise ValueError(excess)
        return self

    def find_excess(self, count: int) -> str:
        """Return the first key that needs more images than `count`, with the most that it can be; empty if none."""
        for key, most in (("kid_subset_size", count), ("isc_splits", count), ("neighbours", count - 1)):
            if (value := getattr(self, key)) > most:
                return f"{key}: expected at most {most} for {count} images, got {value}"
        return ""


def gather(key: str, settings: Params, circumstances: Mapping[str, Any]) -> Evidence:
    """Read what the metrics of a run rest on."""
    return features.gather(key, settings, circumstances, floors=True, channelwise=False)


def require(key: str, settings: Params, known: Mapping[str, Known]) -> None:
    """Refuse data and settings that `compute` would refuse.

    Raises:
        ArtifactError: with the key to change.
    """
    count = features.require(key, settings, known, VALUES, channelwise=False)
    if count and settings.runs[key].network != NONE:
        require_count(cast("Config", settings.metrics["images"]), count)


def require_count(config: Config, count: int) -> None:
    """Refuse settings that need more images than are compared.

    Raises:
        ArtifactError: with the key, and the most that it can be.
    """
    if excess := config.find_excess(count):
        msg = f"metrics.images.{excess}"
        raise ArtifactError(msg)


def compute(evidence: Evidence, config: Config) -> dict[str, list[float]]:
    """Return every metric of every network: floors for each training set, counts and scores once, others for each set.

    Raises:
        ArtifactError: if the images are nonsense, too few for the config, or a network's output is not finite.
    """
    check_evidence(evidence)
    values: dict[str, list[float]] = {"samples": [float(len(evidence.test))]}
    if evidence.networks:
        require_count(config, len(evidence.test))
        values["floor_sets"] = [float(len(evidence.train))]
    for name, network in evidence.networks.items():
        test = evidence.extract_real(name, evidence.test)
        reference = fid_features_to_statistics(test.features)
        floors = [measure_floor(evidence, name, images, test.features, config) for images in evidence.train]
        found: list[dict[str, float]] = []
        for images, floor in zip(evidence.generated, itertools.cycle(floors), strict=False):
            generated = extract(network, shuffle(images))  # KID, IS and fid_infinity take parts of them
            distances = measure_distances(generated.features, test.features, config, reference)
            ratio = {"fid_{network}_ratio": distances["fid"] / floor["fid"]}
            shares = share_classes(generated.logits) if name in evidence.labelled else {}
            others = distances | score_classes(generated.logits, config) | shares
            found.append({f"{metric}_{{network}}": value for metric, value in others.items()} | ratio)
        columns = {template: [entry[template] for entry in found] for template in found[0]}
        columns |= {f"{metric}_{{network}}_floor": [entry[metric] for entry in floors] for metric in floors[0]}
        # IS has no reference set: its counterpart is the value of real test images.
        columns["isc_{network}_real"] = [score_classes(test.logits, config)["isc"]]
        # Else the covariance is singular and FID is mostly bias.
        columns["fid_{network}_reliable"] = [float(len(evidence.test) > test.features.size(1))]
        values |= {fill_name(VALUES, template, network=name): column for template, column in columns.items()}
    return values | average_scores(evidence.scores)


def average_scores(scores: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return the mean of each score, and for a score per image the count and the standard error."""
    values: dict[str, list[float]] = {}
    for name, score in scores.items():
        find_value(VALUES, name)  # the stage sample has named it
        values[name] = [float(score.double().mean())]
        if score.ndim:
            values[find_count(VALUES, name)] = [float(len(score))]
        if score.ndim and (error := find_companion(VALUES, name, "error")):
            values[error] = [float(score.double().std() / len(score) ** 0.5)]
    if "bits_per_dim_change" in values:
        values["bits_per_dim_reliable"] = [float(abs(values["bits_per_dim_change"][0]) < MOST_CHANGED)]
    return values


def measure_floor(evidence: Evidence, name: str, images: Tensor, test: Tensor, config: Config) -> dict[str, float]:
    """Measure training images (N, C, H, W) against the features (N, D) of the test images.

    It is the same for every model, and may be known from another evaluation.
    """

    def make(pair: Tensor) -> dict[str, Tensor]:
        found = measure_distances(pair[0], pair[1], config)
        return {metric: torch.tensor(value, dtype=torch.float64) for metric, value in found.items()}

    pair = torch.stack([evidence.extract_real(name, images).features, test])
    made = evidence.recall({"network": name, "floor": config.model_dump(exclude={"sampling"})}, pair, make)
    return {metric: value.item() for metric, value in made.items()}


def measure_distances(
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
    fid = measure_fid(features, statistics)
    return {
        "fid": fid,
        "fid_infinity": extrapolate_fid({len(features): fid, **measure_parts(features, statistics)}),
        "kid": float(kid["kernel_inception_distance_mean"]),
        "kid_subset_std": float(kid["kernel_inception_distance_std"]),
        "precision": float(manifold["precision"]),
        "recall": float(manifold["recall"]),
    }


def measure_fid(features: Tensor, reference: dict[str, np.ndarray]) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features (N, D) and a reference's mean and covariance."""
    found = fid_statistics_to_metric(fid_features_to_statistics(features), reference, verbose=False)
    return float(found["frechet_inception_distance"])


def measure_parts(features: Tensor, reference: dict[str, np.ndarray]) -> dict[float, float]:
    """Return the mean FID of random halves and of random quarters of features (N, D), by their size."""
    count = len(features)
    order = torch.randperm(count, generator=make_generator(0, "parts", count))  # the first half may be of one class
    return {
        count / parts: sum(measure_fid(features[part], reference) for part in order.tensor_split(parts)) / parts
        for parts in PARTS
    }


def extrapolate_fid(fids: Mapping[float, float]) -> float:
    """Return the intercept of the line through FID over 1 / N: FID without the bias of few generated images.

    Chong and Forsyth 2020, who take one part of each of many sizes; disjoint parts of few sizes have less noise at the
    same cost. The reference keeps its own bias, so this compares runs that face the same reference.
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
