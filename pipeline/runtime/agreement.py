"""Compares what all processes of a training must agree on, before the first of them has an effect on another one.

Gradients are averaged over all processes. With another run, other params, data, code or versions on one node, the
weights would be a mixture of two trainings, and nothing would tell.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import distributed

from pipeline import artifacts
from pipeline.runtime import environment
from pipeline.runtime.environment import HardwareError

LIBRARIES = ("torch", "pytorch-lightning", "numpy")  # that compute what the processes exchange
SHOWN = 5  # differences that a message names
MAX_VALUE = 60  # characters of a value that a message shows


def describe(stage: str, key: str, **parts: Any) -> dict[str, str]:
    """Return what a process is about to train, by name: its instance, parts, versions and settings of the machine.

    Args:
        stage: the stage.
        key: the key of params.yaml that it works on.
        parts: JSON values, such as configs and hashes; each leaf has a name of its own.
    """
    return {
        "stage": f"{stage} {key}",
        **{name: str(value) for name, value in _flatten("", artifacts.encode(parts))},
        "version of python": ".".join(platform.python_version_tuple()[:2]),
        **{f"version of {name}": version(name) for name in LIBRARIES},
        "PIPELINE_STRATEGY": environment.read_strategy(),
        "PIPELINE_PRECISION": environment.read_precision(),
        "PIPELINE_DETERMINISTIC": str(environment.read_determinism()),
    }


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings by dotted name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}".lstrip("."), inner)
    else:
        yield name, value


def find_differences(everyone: Sequence[Mapping[str, str]]) -> list[str]:
    """List the facts that are not the same on all ranks, each with its values and their ranks."""
    differences = []
    for name in dict.fromkeys(name for facts in everyone for name in facts):
        ranks: dict[str, list[int]] = {}
        for rank, facts in enumerate(everyone):
            ranks.setdefault(facts.get(name, "nothing"), []).append(rank)
        if len(ranks) > 1:
            said = [f"{value[:MAX_VALUE]} on rank {', '.join(map(str, known))}" for value, known in ranks.items()]
            differences.append(f"{name} is {' and '.join(said)}")
    return differences


class Agreement(Callback):
    """Refuses to train where a process is about to train something else."""

    def __init__(self, facts: Mapping[str, str]) -> None:
        self.facts = dict(facts)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare, as soon as the processes have found each other, and before they exchange weights.

        Raises:
            HardwareError: with the facts that differ, on every rank.
        """
        if not distributed.is_initialized():
            return
        everyone: list[Any] = [None] * trainer.world_size
        distributed.all_gather_object(everyone, self.facts)
        if differences := find_differences(everyone):
            more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
            msg = f"the processes would train different things: {'; '.join(differences[:SHOWN])}{more}"
            raise HardwareError(msg)
