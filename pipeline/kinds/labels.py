"""Class labels, int64 (N,): the field that conditional models are given, and that classifiers learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.kinds import FieldSpec

if TYPE_CHECKING:
    from torch import Tensor


class Spec(FieldSpec):
    """Number of classes; 0 without labels."""

    kind: Literal["labels"] = "labels"
    classes: int = Field(ge=0)


def give(spec: Spec, count: int) -> Tensor:
    """Return labels for `count` samples: the classes in turn, int64 (N,)."""
    import torch

    return torch.arange(count) % spec.classes
