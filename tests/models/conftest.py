"""A small language model without zeros, and tokens that fill its context."""

import pytest
import torch

from pipeline.kinds.text import make_fields as text_fields
from pipeline.models.transformer import Config, Model

VOCABULARY = 17


def fill(model: torch.nn.Module) -> None:
    """Give every weight a random value: fresh projections and heads are zero, and gains one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)


def make_model(**changes: object) -> Model:
    values: dict[str, object] = {
        "layers": 2,
        "heads": 2,
        "width": 16,
        "context": 12,
        "dropout": 0.0,
        "steps": 10,
        "batch_size": 2,
        "optimizer": "adamw",
        "learning_rate": 1e-2,
        "matrix_learning_rate": 1e-2,
        "warmup": 0,
        "final_learning_rate": 0.0,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "ema": 0.0,
    }
    model = Model(Config.model_validate(values | changes), text_fields(VOCABULARY), seed=0)
    fill(model)
    return model.eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))
