"""Class labels, int64 (N,): the field that conditional models are given, and that classifiers learn."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.artifacts import ArtifactError
from pipeline.kinds import TEST, TRAIN, FieldSpec, Pool

log = logging.getLogger(__name__)
BALANCED = "balanced"


class Spec(FieldSpec):
    """Number of classes; 0 without labels."""

    kind: Literal["labels"] = "labels"
    classes: int = Field(ge=0)


def check_rule(rule: Any) -> Any:
    """Refuse what is no rule by which labels are drawn.

    Raises:
        ValueError: with the rules that there are.
    """
    is_list = isinstance(rule, list) and all(type(label) is int and label >= 0 for label in rule) and rule
    if rule not in (TEST, TRAIN, BALANCED) and not is_list:
        msg = f"expected {TEST}, {TRAIN}, {BALANCED} or a list of classes such as [0, 3]"
        raise ValueError(msg)
    return rule


DESCRIPTION = (
    "classes that a conditional model is given: drawn with the shares of the test or the training split (test, train), "
    "with equal shares (balanced), or from a list of classes; other models ignore it"
)
Rule = Annotated[
    Literal["test", "train", "balanced"] | list[int], BeforeValidator(check_rule), Field(description=DESCRIPTION)
]


def make_pool(name: str, rule: str | list[int], manifest: Mapping[str, Any]) -> Pool:
    """Return the classes that have a training example, each with the weight that the rule gives it.

    Args:
        name: of the field, for messages.
        rule: test, train, balanced or a list of classes; a class that is listed twice is drawn twice as often.
        manifest: of the prepared data; its splits count their examples per class.

    Raises:
        ArtifactError: if the data have no class of the list, or no class is left.
    """
    import torch

    trained = manifest["splits"][TRAIN]["per_class"]
    if isinstance(rule, list):
        if max(rule) >= len(trained):
            msg = f"sampling.{name}: expected classes from 0 to {len(trained) - 1}, got {max(rule)}"
            raise ArtifactError(msg)
        weights = [rule.count(label) for label in range(len(trained))]
    else:
        weights = [1] * len(trained) if rule == BALANCED else manifest["splits"][rule]["per_class"]
    known = [label for label, count in enumerate(trained) if count]
    if unknown := [str(label) for label, weight in enumerate(weights) if weight and not trained[label]]:
        log.warning("%s: no sample is of class %s, which no training example has", name, ", ".join(unknown))
    if not any(weights[label] for label in known):
        msg = f"sampling.{name}: {rule} has no class with a training example; the examples per class are {trained}"
        raise ArtifactError(msg)
    return Pool({name: torch.tensor(known)}, [float(weights[label]) for label in known])
