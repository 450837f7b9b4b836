"""The evidence of image metrics: checked images, and their features by feature networks."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline import artifacts, plugins
from pipeline.artifacts import ArtifactError
from pipeline.evidence import real_cache
from pipeline.evidence.values import Values, fill_name
from pipeline.kinds import images as images_kind
from pipeline.kinds.labels import Rule
from pipeline.params import NONE, Known, Params, Run, Section
from pipeline.randomness import make_generator
from pipeline.weights import choose_device

Make = Callable[[Tensor], dict[str, Tensor]]


class Sampling(Section):
    """What the stage `sample` draws."""

    count: int = Field(
        ge=images_kind.LEAST, description="images; at most as many as the test and the training split hold"
    )
    sets: int = Field(ge=1, description="independent sets of so many images; metrics are means over them")
    importance_samples: int = Field(ge=1, description="K of a likelihood model's importance-weighted bound")
    bits_images: int = Field(
        default=200,
        ge=20,
        exclude_if=lambda images: images == 200,
        description="test images whose bits per dimension are measured, of a model that has them",
    )
    labels: Rule = "test"


@dataclass(frozen=True)
class Evidence:
    """What the numbers rest on.

    generated: S independent sets of uint8 images (N, C, H, W), test: N real ones, train: disjoint sets of N.
    networks: by name, modules that map uint8 images (B, C, H, W) to features (B, D) and class logits (B, K). scores: a
    model's scores by name, float64 (N,) or scalars. labelled: the networks whose classes are those of the images.
    recall: returns what a function makes of a tensor, and may know it from another evaluation; its first argument says
    what the function depends on: the network's name, settings.
    """

    generated: Sequence[Tensor]
    test: Tensor
    train: Sequence[Tensor]
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    labelled: Collection[str] = ()
    recall: Callable[[Mapping[str, Any], Tensor, Make], dict[str, Tensor]] = lambda _, given, make: make(given)

    def extract_real(self, name: str, images: Tensor) -> "Features":
        """Pass real uint8 images (N, C, H, W) through the network `name`."""
        made = self.recall({"network": name}, images, lambda given: extract(self.networks[name], given)._asdict())
        return Features(**made)


def check_evidence(evidence: Evidence) -> None:
    """Refuse evidence of which a set of images is nonsense, or of another shape than the generated ones.

    Raises:
        ArtifactError: with the set's name.
    """
    named = {f"generated set {index}": images for index, images in enumerate(evidence.generated)}
    named["test"] = evidence.test
    named |= {f"training set {index}": images for index, images in enumerate(evidence.train)}
    for name, images in named.items():
        images_kind.check(name, images)
        if images.shape != evidence.generated[0].shape:
            msg = f"{name}: expected the shape of the generated images {tuple(evidence.generated[0].shape)}, "
            raise ArtifactError(msg + f"got {tuple(images.shape)}")


def require(key: str, settings: Params, known: Mapping[str, Known], values: Values, *, channelwise: bool) -> int | None:
    """Refuse data that check_evidence would refuse, a feature network that has learnt other shapes, and names.

    Args:
        key: the run.
        settings: all parameters.
        known: what is known of each data set.
        values: of the metric.
        channelwise: whether the network sees each channel as a picture of its own.

    Returns:
        The number of images that are compared; None if the data are not prepared.

    Raises:
        ArtifactError: with the key to change.
    """
    run = settings.runs[key]
    data, splits = known[run.data], known[run.data].splits
    if run.network != NONE:
        require_names(run, values)
        section = settings.networks[run.network]
        is_trained = not hasattr(plugins.load("networks", section.network), "fetch")
        if is_trained and data.fields and known[section.data].fields:
            learnt, given = (tuple(each.fields["images"].shape) for each in (known[section.data], data))
            require_shape(run, section.data, learnt, (1, *given[1:]) if channelwise else given)
    if not splits:
        return None
    for split in ("test", "train"):
        images_kind.require_split(run.data, settings.data[run.data], split, splits)
    wanted = cast("Sampling", settings.metrics[run.metric].sampling).count
    return min(wanted, *(splits[split]["count"] for split in ("test", "train")))


def require_names(run: Run, values: Values) -> None:
    """Refuse a name of a feature network that makes no names of metrics.

    Raises:
        ArtifactError: with the name.
    """
    for template in values:
        if "{network}" in template:
            fill_name(values, template, network=run.network)


def require_shape(run: Run, data: str, learnt: tuple[int, ...], given: tuple[int, ...]) -> None:
    """Refuse a feature network that has learnt images (C, H, W) of another shape than those of a run.

    Raises:
        ArtifactError: with both shapes.
    """
    if learnt != given:
        msg = f"networks.{run.network} has learnt images {learnt} of data.{data}, "
        raise ArtifactError(msg + f"data.{run.data} has {given}: name a network that learns data.{run.data}")


class Features(NamedTuple):
    """What a network made of N images: features float32 (N, D), class logits float32 (N, K)."""

    features: Tensor
    logits: Tensor


@torch.inference_mode()
def extract(network: nn.Module, images: Tensor) -> Features:
    """Pass uint8 images (N, C, H, W) through a network, in batches of 250, on the network's device, in float32."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    # A GPU would round the factors of its convolutions to ten bits (TF32).
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        parts = [network(part.to(device)) for part in images.split(250)]
    features, logits = (torch.cat([part[index] for part in parts]).float().cpu() for index in (0, 1))
    if not (features.isfinite().all() and logits.isfinite().all()):
        msg = f"{type(network).__name__}: the feature network's output is not finite for {len(images)} images"
        raise ArtifactError(msg)
    return Features(features, logits)


def gather(
    key: str, settings: Params, circumstances: Mapping[str, Any], *, floors: bool, channelwise: bool
) -> Evidence:
    """Read generated and test images, a set of training images for each generated one, the network and the scores.

    Args:
        key: the run.
        settings: all parameters.
        circumstances: other dependencies of the features of real images: code, versions, processor.
        floors: whether training images are compared with test images as well.
        channelwise: whether the network sees each channel as a picture of its own.
    """
    run = settings.runs[key]
    folder = artifacts.RUNS / key / "samples"
    generated = list(artifacts.read_tensors(folder / "generated.safetensors").values())
    count = len(generated[0])
    (test,) = (part["images"] for part in read_real(run.data, "test", count, 1))
    train = [part["images"] for part in read_real(run.data, "train", count, len(generated))] if floors else []
    networks, labelled, described = {}, set(), {}
    if run.network != NONE:
        shape = tuple(generated[0].shape[1:])
        networks[run.network] = load_network(run, settings, (1, *shape[1:]) if channelwise else shape)
        described = describe_network(run.network, settings)
        section = settings.networks[run.network]
        if section.data == run.data and not hasattr(plugins.load("networks", section.network), "fetch"):
            labelled.add(run.network)  # it was trained on the labels of these images
    scores = folder / "scores.safetensors"

    def recall(about: Mapping[str, Any], given: Tensor, make: Make) -> dict[str, Tensor]:
        return real_cache.recall({**about, **described, **circumstances}, given, make)

    known = artifacts.read_tensors(scores) if scores.exists() else {}
    return Evidence(generated, test, train, networks, known, labelled, recall)


def load_network(run: Run, settings: Params, shape: tuple[int, ...]) -> nn.Module:
    """Return a run's feature network on the device that the machine has.

    Raises:
        ArtifactError: if it has learnt images of another shape.
    """
    section = settings.networks[run.network]
    folder = artifacts.NETWORKS / run.network
    learnt = artifacts.read_json(folder / "config.json").get("spec", {}).get("shape")
    if learnt:
        require_shape(run, section.data, tuple(learnt), shape)
    network: nn.Module = plugins.load("networks", section.network).load_features(folder).to(choose_device())
    return network


def describe_network(name: str, settings: Params) -> dict[str, str]:
    """Return what makes a feature network's numbers comparable: its kind, its weights, what it does to an image."""
    section = settings.networks[name]
    module, backbone = (
        plugins.load("networks", section.network),
        plugins.load("backbones", settings.data[section.data].KIND),
    )
    folder = artifacts.NETWORKS / name
    return {
        "network": section.network,
        "weights_sha256": artifacts.digest(artifacts.find_weights(folder)),
        "config_sha256": artifacts.digest(folder / "config.json"),
        "preprocessing": getattr(backbone, "PREPROCESSING", module.PREPROCESSING),
    }


def read_real(name: str, split: str, count: int, most: int) -> list[dict[str, Tensor]]:
    """Read up to `most` disjoint sets of `count` examples, in an order by the split's content; a short split as it is.

    Each set has the rows of all fields.
    """
    values = artifacts.read_split(name, split)
    order = make_order(len(next(iter(values.values()))), artifacts.read_manifest(name)["splits"][split]["sha256"])
    parts = [part for part in order.split(count)[:most] if len(part) == count]
    return [{field: each[part] for field, each in values.items()} for part in parts or [order]]


def make_order(count: int, content: str) -> Tensor:
    """Return a permutation of `count` images by their content, so that all runs face the same reference images."""
    return torch.randperm(count, generator=make_generator(0, "reference", content))
