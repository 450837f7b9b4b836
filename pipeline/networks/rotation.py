"""Feature network for pictures without classes: it learns by how much a picture is turned.

Each training picture is turned by 0, 90, 180 or 270 degrees, and a small network tells which (Gidaris et al. 2018,
"RotNet"). It needs no labels and no download. Its 128 features then serve FID, KID, precision and recall, as Morozov
et al. (2021) propose for self-supervised features. They mean something only where pictures have an up and a down:
`test_accuracy` in reports/networks/<name>.json says so, and is 0.25 where they have none. Departure: a small network.

It knows no classes: to the Inception Score all pictures are of one, so that `isc_rotation` is 1. Numbers are comparable
between runs with the same weights only.

Dimensions: B batch, C H W image, D features.
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
from pipeline.layers.features import Layers, make_optimizer
from pipeline.params import Network
from pipeline.randomness import derive_seed, make_generator, seed_global, seeded, share, this_part
from pipeline.weights import choose_device, load_model

BACKBONE = ("make_features", "require_features", "to_unit")
LEARNS = ("images",)
TURNS = 4
PREPROCESSING = "uint8 to [-1, 1], no resize"


class Config(Network):
    """Hyper-parameters of the network."""

    network: Literal["rotation"]
    data: str = Field(description="section of data whose training split it learns")
    seed: int = Field(ge=0, description="seed of weights, order and turns")
    width: int = Field(ge=1, description="channels at full resolution; twice as many at half")
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=1, description="pictures per step")
    learning_rate: float = Field(gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(ge=0, description="decoupled weight decay")


def require(config: Config, fields: Fields) -> None:
    """Refuse pictures that it cannot turn or halve.

    Raises:
        ArtifactError: if they are not square, or too small.
    """
    del config
    spec = fields[find_field(fields, LEARNS)]
    _, height, width = spec.shape
    if height != width:
        msg = f"it turns pictures by 90 degrees: expected square ones, got {height}x{width}"
        raise ArtifactError(msg)
    plugins.load("backbones", spec.kind).require_features(spec)


def turn(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each square image (B, C, H, H) by as many quarters as `turns`, int64 (B,), says."""
    turned = torch.stack([torch.rot90(images, quarters, (2, 3)) for quarters in range(TURNS)])  # (4, B, C, H, H)
    return turned[turns, torch.arange(len(images), device=images.device)]


class Model(LightningModule):
    """Trains the network on cross-entropy of the turn."""

    def __init__(self, config: Config, fields: Fields, seed: int) -> None:
        super().__init__()
        require(config, fields)
        self.config = config
        self.seed = seed
        self.learns = find_field(fields, LEARNS)
        self.spec = fields[self.learns]
        self.backbone = plugins.load("backbones", self.spec.kind)
        with seeded(seed, "weights"):
            self.network = Layers(config.width, self.backbone, self.spec, TURNS)

    @property
    def kept(self) -> nn.Module:
        """The weights that are saved."""
        return self.network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 128) of uint8 images (B, C, H, H), and the logit (B, 1) of the only class."""
        features, _ = self.network(self.backbone.to_unit(images, self.spec))
        return features, features.new_zeros(len(features), 1)

    def tell(self, images: Tensor) -> Tensor:
        """Return logits (B, 4) of the quarters by which uint8 images (B, C, H, H) are turned."""
        logits: Tensor = self.network(self.backbone.to_unit(images, self.spec))[1]
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the mean cross-entropy and the accuracy of one batch."""
        part = this_part()
        seed_global(derive_seed(self.seed, "dropout", batch_idx, part.rank))  # it has no generator argument
        generator = make_generator(self.seed, "turn", batch_idx, device=self.device)
        images = batch[self.learns]
        turns = share(
            lambda count: torch.randint(TURNS, (count,), generator=generator, device=self.device), len(images), part
        )
        logits = self.tell(turn(images, turns))
        accuracy = (logits.argmax(dim=1) == turns).float().mean()
        return {"loss": F.cross_entropy(logits, turns), "accuracy": accuracy}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with cosine decay."""
        return make_optimizer(self.network, self.config)


def load_features(folder: Path) -> nn.Module:
    """Return the frozen network: uint8 images (B, C, H, H) to features (B, 128) and the logit (B, 1) of one class."""
    network: nn.Module = load_model(folder, "networks").model.requires_grad_(False)
    return network


@torch.inference_mode()
def measure_accuracy(network: Model, split: Mapping[str, Tensor]) -> float:
    """Return the share of right answers for each image of a split, turned in each of the four ways."""
    right = total = 0
    for part in split[network.learns].split(500):
        for quarters in range(TURNS):
            told = network.tell(torch.rot90(part.to(choose_device()), quarters, (2, 3))).argmax(dim=1)
            right += int((told == quarters).sum())
            total += len(part)
    return right / total
