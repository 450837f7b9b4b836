"""One file, one model: Config and Model. This file has what a model needs that is one network with one loss."""

from abc import abstractmethod
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from pydantic import Field
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.kinds import Fields
from pipeline.layers.blocks import make_average, warmup_cosine
from pipeline.params import Trainable
from pipeline.randomness import derive_seed, make_generator, seed_global, seeded, this_part


class OneNetworkConfig(Trainable):
    """Hyper-parameters of AdamW with warm-up and cosine decay; a model adds its own."""

    learning_rate: float = Field(gt=0, description="peak learning rate of AdamW")
    warmup: int = Field(ge=0, description="steps of linear warm-up")
    final_learning_rate: float = Field(ge=0, le=1, description="share of the peak reached by the cosine's end")
    weight_decay: float = Field(ge=0, description="decoupled weight decay")


def require(config: Any, fields: Fields) -> None:
    """Accept all data of the kinds that a model learns; a model that cannot defines its own."""


def require_shift(most: int, backbone: ModuleType, spec: Any) -> None:
    """Refuse shifts of data that have no place to be shifted to.

    Raises:
        ArtifactError: with the value that would do.
    """
    if most and not hasattr(backbone, "shift"):
        msg = f"shift: expected 0 for {spec.kind}, got {most}"
        raise ArtifactError(msg)


class OneNetwork(LightningModule):
    """A model of one network. A subclass defines `build`, `compute_loss` and `draw`, and `given` where it is given one.

    The network is trained; its average is kept where `ema` is above 0. Weights, noise and samples follow from seeds.
    """

    given: tuple[str, ...] = ()

    def __init__(self, config: Any, fields: Fields, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        kinds = {name: plugins.load("kinds", spec.kind) for name, spec in fields.items()}
        self.makes = next(name for name, kind in kinds.items() if hasattr(kind, "make_fields"))  # not the labels
        with seeded(seed, "weights"):
            self.network = self.build(fields)
        self.average = make_average(self.network, config.ema) if config.ema else None

    @abstractmethod
    def build(self, fields: Fields) -> nn.Module:
        """Return the network for data of these fields; `fields[self.makes]` is the spec of what it makes."""

    @abstractmethod
    def compute_loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return the loss of `self.network` on a batch of the fields' values, with noise from the generator."""

    @abstractmethod
    def draw(self, network: nn.Module, count: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> Tensor:
        """Return `count` samples of a network, like the data: images are uint8 (N, C, H, W)."""

    @property
    def trained(self) -> nn.Module:
        """The weights that a start gives."""
        return self.network

    @property
    def kept(self) -> nn.Module:
        """The weights that are saved and sampled."""
        return self.network if self.average is None else self.average.module

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one batch; each process has noise of its own."""
        rank = this_part().rank
        seed_global(derive_seed(self.seed, "noise", batch_idx, rank))  # dropout has no generator argument
        generator = make_generator(self.seed, "noise", batch_idx, rank, device=self.device)
        return {"loss": self.compute_loss(batch, generator)}

    def optimizer_step(self, *arguments: Any, **settings: Any) -> None:
        """Update the averaged weights with each step, before any callback can save the two apart."""
        super().optimizer_step(*arguments, **settings)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and cosine decay."""
        config = self.config
        optimizer = torch.optim.AdamW(
            self.network.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: warmup_cosine(
                step, steps=config.steps, warmup=config.warmup, final=config.final_learning_rate
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.inference_mode()
    def sample(self, count: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw `count` values from the kept network, 500 at a time, by the field's name."""
        network = self.kept.eval()
        parts = torch.arange(count, device=self.device).split(500)
        here = {name: values.to(self.device) for name, values in given.items()}
        drawn = [
            self.draw(network, len(part), generator, {name: values[part] for name, values in here.items()})
            for part in parts
        ]
        return {self.makes: torch.cat(drawn)}
