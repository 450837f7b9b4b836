"""Points: what is written is what was given, and nothing is rounded on the way."""

import math
from pathlib import Path

import pytest
import torch

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.kinds.points import PointConfig, Points, write

CONFIG = PointConfig(source="test", path="none", count=100, data_seed=0)
MODES = torch.zeros(1, 2)


def make_splits(values: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {"train": (values, torch.zeros(len(values), dtype=torch.int64))}


def test_points_are_written_as_they_are(tmp_path: Path) -> None:
    values = torch.randn(10, 2)
    manifest = write(tmp_path, Points(make_splits(values), MODES, 1.0), CONFIG)
    assert torch.equal(artifacts.read_tensors(tmp_path / "train.safetensors")["points"], values)
    assert manifest["splits"]["train"]["count"] == 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(10, 2, dtype=torch.float64), "got torch.float64, 0 of 20 coordinates not finite"),
        (torch.tensor([[math.nan, 0.0], [1.0, math.inf]]), "got torch.float32, 2 of 4 coordinates not finite"),
    ],
)
def test_points_that_would_be_rounded_or_are_not_finite_are_refused(
    values: torch.Tensor, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=f"train: expected finite float32 points, {message}"):
        write(tmp_path, Points(make_splits(values), MODES, 1.0), CONFIG)
