"""Layers of the feature networks that are trained: features of an example, and logits of what they are trained to tell.

Dimensions: B batch, D features, K classes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from pipeline.layers.blocks import warmup_cosine

FEATURES = 128


def make_optimizer(network: nn.Module, config: Any) -> OptimizerLRSchedulerConfig:
    """Return AdamW with a twentieth of the steps of `config` as warm-up, and cosine decay to a hundredth."""
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, steps=config.steps, warmup=config.steps // 20, final=0.01)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Layers(nn.Module):
    """Maps values in the backbone's range, such as images in [-1, 1], to features (B, 128) and class logits (B, K)."""

    def __init__(self, width: int, backbone: Any, spec: Any, classes: int) -> None:
        super().__init__()
        self.layers, flat = backbone.make_features(spec, width)
        self.features = nn.Linear(flat, FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 128) after ReLU, and logits (B, K)."""
        features = F.relu(self.features(self.layers(values)))
        return features, self.head(F.dropout(features, 0.3, self.training))
