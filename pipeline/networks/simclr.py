"""Feature network for pictures without labels: two views of a picture are alike, views of two pictures are not.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR), with the loss of the
lightly library. A view is shifted, turned, scaled and partly covered; it is never mirrored, since a mirrored digit is
another one. The 128 features before the projector serve FID, KID, precision and recall of sets without classes, and a
linear probe for few labels. To the Inception Score all pictures are of one class. Departure: a small network.

Dimensions: B batch, C H W image, D features, P projection.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from pydantic import Field
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from pipeline import plugins
from pipeline.kinds import Fields, find_field
from pipeline.layers.augmentation import cut_out, translate, turn_and_scale
from pipeline.layers.features import FEATURES, make_optimizer
from pipeline.params import Network
from pipeline.randomness import make_generator, seeded, this_part
from pipeline.weights import choose_device, load_model

LEARNS = ("images",)
PREPROCESSING = "uint8 to [-1, 1], no resize"
PROJECTION = 64
VIEWS = (translate, turn_and_scale, cut_out)


class Config(Network):
    """Hyper-parameters of the network."""

    network: Literal["simclr"]
    data: str = Field(description="section of data whose training split it learns; labels are not read")
    seed: int = Field(ge=0, description="seed of weights, order and views")
    width: int = Field(ge=1, description="channels at full resolution; twice as many at half")
    temperature: float = Field(gt=0, description="divides the cosines of projections")
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=2, description="pictures per step, each in two views")
    learning_rate: float = Field(gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(ge=0, description="decoupled weight decay")


def require(config: Config, fields: Fields) -> None:
    """Refuse pictures that are too small, by an ArtifactError."""
    del config
    spec = fields[find_field(fields, LEARNS)]
    plugins.load("backbones", spec.kind).require_features(spec)


class Layers(nn.Module):
    """Maps images in [-1, 1] to features (B, 128), and these to projections (B, 64) for the loss."""

    def __init__(self, width: int, backbone: Any, spec: Any) -> None:
        super().__init__()
        self.layers, flat = backbone.make_features(spec, width)
        self.features = nn.Linear(flat, FEATURES)
        self.project = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, PROJECTION))

    def forward(self, values: Tensor) -> Tensor:
        """Return features (B, 128) after ReLU."""
        return F.relu(self.features(self.layers(values)))


class Model(LightningModule):
    """Trains the network to tell which two views are of one picture."""

    def __init__(self, config: Config, fields: Fields, seed: int) -> None:
        super().__init__()
        require(config, fields)
        self.config = config
        self.seed = seed
        self.learns = find_field(fields, LEARNS)
        self.spec = fields[self.learns]
        self.backbone = plugins.load("backbones", self.spec.kind)
        self.contrast = NTXentLoss(temperature=config.temperature)
        with seeded(seed, "weights"):
            self.network = Layers(config.width, self.backbone, self.spec)

    @property
    def kept(self) -> nn.Module:
        """The weights that are saved."""
        return self.network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 128) of uint8 images (B, C, H, W), and the logit (B, 1) of the only class."""
        features = self.network(self.backbone.to_unit(images, self.spec))
        return features, features.new_zeros(len(features), 1)

    def project(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return projections (B, 64) of a random view of each of uint8 images (B, C, H, W)."""
        views = self.backbone.to_unit(images, self.spec)
        for change in VIEWS:
            views = change(views, generator, this_part())
        projections: Tensor = self.network.project(self.network(views))
        return projections

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the mean cross-entropy of finding the other view among all views of the batch."""
        generator = make_generator(self.seed, "views", batch_idx, device=self.device)
        images = batch[self.learns]
        loss = self.contrast(self.project(images, generator), self.project(images, generator))
        return {"loss": loss}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with cosine decay."""
        return make_optimizer(self.network, self.config)


def load_features(folder: Path) -> nn.Module:
    """Return the frozen network: uint8 images (B, C, H, W) to features (B, 128) and the logit (B, 1) of one class."""
    network: nn.Module = load_model(folder, "networks").model.requires_grad_(False)
    return network


@torch.inference_mode()
def measure_accuracy(network: Model, split: Mapping[str, Tensor]) -> float:
    """Return the share of views, among 250 pictures each, whose nearest other view is of the same picture."""
    right = total = 0
    for index, part in enumerate(split[network.learns].split(250)):
        if len(part) < 2:
            continue
        generator = make_generator(0, "accuracy", index, device=choose_device())
        first, second = (F.normalize(network.project(part.to(choose_device()), generator), dim=1) for _ in range(2))
        right += int(((first @ second.T).argmax(dim=1) == torch.arange(len(part), device=first.device)).sum())
        total += len(part)
    return right / max(total, 1)
