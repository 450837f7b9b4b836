"""Small convolutional classifier whose features take Inception's place where no network is at hand.

Trained by the stage `features` on the training split alone, then frozen and hashed: `fid_classifier`,
`kid_classifier`, `precision_classifier` and `recall_classifier` compare its 128 features, `isc_classifier` uses its
class probabilities. Numbers are comparable between runs with the same weights, never with Inception's.

Dimensions: B batch, C H W image, D features, K classes.
"""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError, ImageSpec
from pipeline.layers.blocks import from_bytes, shift_images, warmup_cosine
from pipeline.params import Network
from pipeline.randomness import make_generator, seed_global, seeded, this_part
from pipeline.weights import load_model

KINDS = ("images",)
FEATURES = 128
PREPROCESSING = "uint8 to [-1, 1], no resize"


class Config(Network):
    """Hyper-parameters of the classifier."""

    network: Literal["classifier"]
    data: str = Field(description="section of data whose training split it learns")
    seed: int = Field(ge=0, description="seed of weights, order and augmentation")
    width: int = Field(ge=1, description="channels at full resolution; twice as many at half")
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=1, description="images a step")
    learning_rate: float = Field(gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(ge=0, description="decoupled weight decay")
    shift: int = Field(ge=0, description="largest random shift of a training image, in pixels")


class Layers(nn.Module):
    """Maps images in [-1, 1] (B, C, H, W) to features (B, 128) and class logits (B, K)."""

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        width = config.width
        layers: list[nn.Module] = []
        for before, after in ((spec.shape[0], width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        flat = 4 * width * (spec.shape[1] // 8) * (spec.shape[2] // 8)
        self.features = nn.Linear(flat, FEATURES)
        self.head = nn.Linear(FEATURES, spec.classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 128) after ReLU, and logits (B, K)."""
        features = F.relu(self.features(self.layers(images)))
        return features, self.head(F.dropout(features, 0.3, self.training))


class Model(LightningModule):
    """Trains the network on cross-entropy; refuses data without labels, or of fewer than 8 pixels a side."""

    def __init__(self, config: Config, spec: ImageSpec, seed: int) -> None:
        super().__init__()
        if spec.classes < 2:
            msg = f"the classifier needs labelled images of 2 classes or more, got {spec.classes}: use inception"
            raise ArtifactError(msg)
        if min(spec.shape[1:]) < 8:
            msg = f"the classifier halves an image three times: sides must be 8 or more, got {spec.shape[1:]}"
            raise ArtifactError(msg)
        self.config = config
        self.seed = seed
        with seeded(seed, "weights"):
            self.network = Layers(config, spec)

    @property
    def kept(self) -> nn.Module:
        """The weights that are saved."""
        return self.network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 128) and logits (B, K) of uint8 images (B, C, H, W)."""
        features, logits = self.network(from_bytes(images))
        return features, logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the mean cross-entropy and the accuracy of one batch."""
        generator = make_generator(self.seed, "shift", batch_idx, device=self.device)
        part = this_part()
        seed_global(generator.initial_seed() + part.rank)  # dropout has no generator argument
        images = shift_images(batch["images"], self.config.shift, generator, part)
        _, logits = self.network(from_bytes(images))
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
    """Return the frozen network: uint8 images (B, C, H, W) to features (B, 128) and logits (B, K)."""
    network: nn.Module = load_model(folder).model.requires_grad_(False)
    return network
