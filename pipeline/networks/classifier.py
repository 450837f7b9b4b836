"""Small convolutional classifier whose features replace Inception's where there is no internet.

Trained by the stage `networks` on the training split only, then frozen and hashed: `fid_classifier`,
`kid_classifier`, `precision_classifier` and `recall_classifier` compare its 128 features, `isc_classifier` uses its
class probabilities. Numbers are comparable between runs with the same weights, never with Inception's. It learns every
kind of data whose backbone has a classifier's layers.

Dimensions: B batch, C H W image, D features, K classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.kinds import Fields, find_field
from pipeline.layers.blocks import warmup_cosine
from pipeline.layers.features import Layers
from pipeline.params import Network
from pipeline.randomness import make_generator, seed_global, seeded, this_part
from pipeline.weights import choose_device, load_model

BACKBONE = ("make_features", "require_features", "shift", "to_unit")
LEARNS = plugins.find_providers("backbones", BACKBONE)
PREPROCESSING = "uint8 to [-1, 1], no resize"


class Config(Network):
    """Hyper-parameters of the classifier."""

    network: Literal["classifier"]
    data: str = Field(description="section of data whose training split it learns")
    seed: int = Field(ge=0, description="seed of weights, order and augmentation")
    width: int = Field(ge=1, description="channels at full resolution; twice as many at half")
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=1, description="images per step")
    learning_rate: float = Field(gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(ge=0, description="decoupled weight decay")
    shift: int = Field(
        ge=0, description="largest random shift of a training example: pixels of an image, samples of a clip"
    )


def require(config: Config, fields: Fields) -> None:
    """Refuse data that it cannot learn.

    Raises:
        ArtifactError: if there are fewer than two classes, or a value is too small.
    """
    del config
    classes = fields["labels"].classes if "labels" in fields else 0
    if classes < 2:
        msg = (
            f"it learns to tell classes apart, which needs 2 or more, the data have {classes}; bring data of more "
            "classes, name a network of published weights, or set the network of the runs to none"
        )
        raise ArtifactError(msg)
    spec = fields[find_field(fields, LEARNS)]
    plugins.load("backbones", spec.kind).require_features(spec)


class Model(LightningModule):
    """Trains the network on cross-entropy; refuses data without labels."""

    def __init__(self, config: Config, fields: Fields, seed: int) -> None:
        super().__init__()
        require(config, fields)
        self.config = config
        self.seed = seed
        self.learns = find_field(fields, LEARNS)
        self.spec = fields[self.learns]
        self.backbone = plugins.load("backbones", self.spec.kind)
        with seeded(seed, "weights"):
            self.network = Layers(config.width, self.backbone, self.spec, fields["labels"].classes)

    @property
    def kept(self) -> nn.Module:
        """The weights that are saved."""
        return self.network

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 128) and logits (B, K) of stored values, such as uint8 images (B, C, H, W)."""
        features, logits = self.network(self.backbone.to_unit(values, self.spec))
        return features, logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the mean cross-entropy and the accuracy of one batch."""
        generator = make_generator(self.seed, "shift", batch_idx, device=self.device)
        part = this_part()
        seed_global(generator.initial_seed() + part.rank)  # dropout has no generator argument
        values = self.backbone.shift(batch[self.learns], self.config.shift, generator, part)
        _, logits = self.network(self.backbone.to_unit(values, self.spec))
        accuracy = (logits.argmax(dim=1) == batch["labels"]).float().mean()
        return {"loss": F.cross_entropy(logits, batch["labels"]), "accuracy": accuracy}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with cosine decay."""
        config = self.config
        optimizer = torch.optim.AdamW(
            self.network.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, steps=config.steps, warmup=config.steps // 20, final=0.01)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def load_features(folder: Path) -> nn.Module:
    """Return the frozen network: stored values, such as uint8 images (B, C, H, W), to features (B, 128) and logits."""
    network: nn.Module = load_model(folder, "networks").model.requires_grad_(False)
    return network


@torch.inference_mode()
def measure_accuracy(network: nn.Module, split: Mapping[str, Tensor]) -> float:
    """Return the share of a split's examples that a frozen network labels right."""
    values = split[network.learns]  # type: ignore[index]
    parts = [network(part.to(choose_device()))[1].argmax(dim=1).cpu() for part in values.split(500)]
    return float((torch.cat(parts) == split["labels"]).double().mean())
