"""What metrics of images rest on: the images themselves, checked, and what feature networks make of them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError
from pipeline.params import Section

LEAST = 50
Make = Callable[[Tensor], dict[str, Tensor]]


class Sampling(Section):
    """What the stage `sample` draws."""

    count: int = Field(ge=LEAST, description="images; at most as many as the test and the training split hold")
    sets: int = Field(ge=1, description="independent sets of so many images; metrics are means over them")
    importance_samples: int = Field(ge=1, description="K of a likelihood model's importance-weighted bound")


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


def check_evidence(evidence: Evidence) -> None:
    """Refuse evidence of which a set of images is nonsense, or of another shape than the generated ones.

    Raises:
        ArtifactError: with the set's name.
    """
    named = {f"generated set {index}": images for index, images in enumerate(evidence.generated)}
    named["test"] = evidence.test
    named |= {f"training set {index}": images for index, images in enumerate(evidence.train)}
    for name, images in named.items():
        check_images(name, images)
        if images.shape != evidence.generated[0].shape:
            msg = f"{name}: expected the shape of the generated images {tuple(evidence.generated[0].shape)}, "
            raise ArtifactError(msg + f"got {tuple(images.shape)}")


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
