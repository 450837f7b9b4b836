"""Image quality: FID, KID, Inception Score, precision and recall, computed by torch-fidelity from uint8 images.

Heusel et al. 2017 (FID), Binkowski et al. 2018 (KID), Salimans et al. 2016 (IS), Kynkaanniemi et al. 2019 (precision
and recall). Each number is named <metric>_<feature network> and stands beside its floor: the same metric of real
training images against the same real test images, with the same counts. Lower is better for FID and KID.

Per-image scores of a model with a likelihood (`scores`: elbo, iw, kl in nats) are averaged, with standard errors.
"""

import contextlib
import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from pipeline.params import Section

KIND = "images"
LEAST = 50
_numbers = itertools.count()
NAMES = {
    "frechet_inception_distance": "fid",
    "kernel_inception_distance_mean": "kid",
    "kernel_inception_distance_std": "kid_subset_std",
    "inception_score_mean": "isc",
    "inception_score_std": "isc_split_std",
    "precision": "precision",
    "recall": "recall",
}


class Sampling(Section):
    """What the stage `sample` draws."""

    count: int = Field(ge=LEAST, description="images; at most as many as the test and the training split hold")
    importance_samples: int = Field(ge=1, description="K of a likelihood model's importance-weighted bound")


class Config(Section):
    """How image quality is measured."""

    sampling: Sampling
    kid_subsets: int = Field(ge=1, description="subsets that KID is averaged over")
    kid_subset_size: int = Field(ge=2, description="images a subset; at most the count")
    neighbours: int = Field(ge=1, description="k of the nearest-neighbour manifolds of precision and recall")
    isc_splits: int = Field(ge=1, description="splits of the Inception Score")


@dataclass(frozen=True)
class Evidence:
    """What the numbers rest on.

    generated, test, train: uint8 images (N, C, H, W) of equal counts. networks: by name, modules that map uint8 images
    (B, C, H, W) to features (B, D) and class logits (B, K). scores: a model's scores by name, float64 (N,) or scalars.
    """

    generated: Tensor
    test: Tensor
    train: Tensor
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    scores: Mapping[str, Tensor] = field(default_factory=dict)


def check_images(name: str, images: Tensor, least: int = LEAST) -> None:
    """Refuse what would give a plausible number for nonsense.

    Raises:
        TypeError: if the images are not uint8, with the range found.
        ValueError: if the shape is not (N, 1 or 3, H, W), there are too few, or they are all of one value.
    """
    if images.dtype != torch.uint8:
        broken = int((~images.isfinite()).sum()) if images.is_floating_point() else 0
        found = f"{images.dtype} in [{float(images.min()):.3g}, {float(images.max()):.3g}], {broken} not finite"
        msg = f"{name}: expected uint8 images in [0, 255], got {found}"
        raise TypeError(msg)
    if images.ndim != 4 or images.size(1) not in {1, 3}:
        msg = f"{name}: expected images (N, 1 or 3, H, W), got {tuple(images.shape)}"
        raise ValueError(msg)
    if len(images) < least:
        msg = f"{name}: {len(images)} images are too few, expected {least} or more"
        raise ValueError(msg)
    if images.min() == images.max():
        msg = f"{name}: every pixel of all {len(images)} images is {int(images.min())}"
        raise ValueError(msg)


def compute(evidence: Evidence, config: Config) -> dict[str, float]:
    """Return every metric of every network with its floor and the counts, all finite."""
    count = len(evidence.generated)
    for name in ("generated", "test", "train"):
        images = getattr(evidence, name)
        check_images(name, images)
        if images.shape != evidence.generated.shape:
            msg = f"{name}: expected the shape of the generated images {tuple(evidence.generated.shape)}, "
            raise ValueError(msg + f"got {tuple(images.shape)}")
    values: dict[str, float] = {"samples": count}
    for name, network in evidence.networks.items():
        results = measure(network, evidence.generated, evidence.test, config)
        floors = measure(network, evidence.train, evidence.test, config, ("fid", "kid", "prc"))
        values |= {f"{metric}_{name}": value for metric, value in results.items()}
        values |= {f"{metric}_{name}_floor": value for metric, value in floors.items()}
        # IS has no reference set: its counterpart is the value of real test images.
        real = measure(network, evidence.test, evidence.train, config, ("isc",))
        values[f"isc_{name}_real"] = real["isc"]
        values[f"fid_{name}_ratio"] = results["fid"] / floors["fid"]
        values |= class_shares(network, evidence.generated, name)
        with torch.inference_mode():
            width = network(evidence.test[:1])[0].size(1)
        values[f"fid_{name}_reliable"] = float(count > width)  # else the covariance is singular and FID mostly bias
    for name, score in evidence.scores.items():
        values[name] = float(score.double().mean())
        if score.ndim:
            values[f"{name}_se"] = float(score.double().std() / len(score) ** 0.5)
    return values


def measure(
    network: nn.Module,
    images: Tensor,
    reference: Tensor,
    config: Config,
    metrics: Sequence[str] = ("fid", "kid", "prc", "isc"),
) -> dict[str, float]:
    """Return metrics of uint8 images (N, C, H, W) and a reference, by torch-fidelity; `prc` is precision and recall."""
    check_images("images", images)
    check_images("reference", reference)
    name = f"pipeline-{next(_numbers)}"  # the registry refuses a name twice
    register_feature_extractor(name, _make_extractor(network))
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        results = calculate_metrics(
            input1=_Images(images),
            input2=_Images(reference),
            cuda=torch.cuda.is_available(),
            **{metric: metric in metrics for metric in ("fid", "kid", "prc", "isc")},
            feature_extractor=name,
            feature_layer_fid="features",
            feature_layer_kid="features",
            feature_layer_prc="features",
            feature_layer_isc="logits",
            isc_splits=config.isc_splits,
            kid_subsets=config.kid_subsets,
            kid_subset_size=min(config.kid_subset_size, len(images), len(reference)),
            prc_neighborhood=config.neighbours,
            prc_batch_size=10_000,
            samples_shuffle=True,
            rng_seed=2020,
            batch_size=250,
            save_cpu_ram=True,
            cache=False,
            verbose=False,
        )
    return {NAMES[key]: float(value) for key, value in results.items() if key in NAMES}


def class_shares(network: nn.Module, images: Tensor, name: str) -> dict[str, float]:
    """Return the smallest and the largest share of images that any one class gets from the network."""
    with torch.inference_mode():
        classes = torch.cat([network(part)[1].argmax(dim=1) for part in images.split(250)])
        width = network(images[:1])[1].size(1)
    shares = torch.bincount(classes.cpu(), minlength=width).double() / len(images)
    return {f"class_share_min_{name}": float(shares.min()), f"class_share_max_{name}": float(shares.max())}


class _Images(Dataset[Tensor]):
    """The images one by one, as torch-fidelity asks for them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def _make_extractor(network: nn.Module) -> type[FeatureExtractorBase]:
    """Wrap a network as the class that torch-fidelity registers and instantiates."""

    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **settings: object) -> None:
            super().__init__(name, features_list)
            self.network = network
            self.eval()

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features, logits = self.network(images)
            named = {"features": features, "logits": logits}
            return tuple(named[layer] for layer in self.features_list)

    return Extractor
