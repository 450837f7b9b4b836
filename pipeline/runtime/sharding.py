"""Fully sharded data parallelism (Rajbhandari et al. 2020, "ZeRO", stage 3; Zhao et al. 2023, "PyTorch FSDP").

PIPELINE_STRATEGY=fsdp: each process holds one part of the weights, gradients and optimizer states, and gathers the
weights of a block while it computes with them. A model says in `configure_model` how it is cut, as Lightning asks.
Checkpoints hold whole tensors: a training may go on with another number of processes, or without sharding.
"""

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from pipeline.runtime import environment, processes
from pipeline.runtime.environment import HardwareError

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true")  # that Lightning has for it
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_named() -> bool:
    """Say whether the environment names this strategy."""
    return environment.read_strategy() == "fsdp"


def is_asked_for() -> bool:
    """Return whether this process shares the weights of a model with others; a single process holds them all."""
    return is_named() and processes.is_member() and processes.read_layout().world > 1


class Sharded(ModelParallelStrategy):
    """FSDP over all processes, whose checkpoints are those of a training without sharding.

    Lightning numbers the states of an optimizer by the model's parameters, where PyTorch numbers them by the
    optimizer's own groups: one cannot read what the other wrote.
    """

    def __init__(self, world: int, timeout: timedelta) -> None:
        super().__init__(
            data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout
        )

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state in the first process, and nothing in every other process."""
        assert self.model is not None
        named: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer, options=WHOLE)
        if self.global_rank:
            return {}
        numbers = {name: number for number, name in enumerate(self._list_names(optimizer))}
        groups = [group | {"params": [numbers[name] for name in group["params"]]} for group in named["param_groups"]]
        return {"state": {numbers[name]: state for name, state in named["state"].items()}, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Give each process its part of a checkpoint's whole tensors."""
        del weights_only  # Lightning does not pass on what `fit` was told
        assert self.model is not None
        checkpoint = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            names = self._list_names(optimizer)
            groups = [
                group | {"params": [names[number] for number in group["params"]]} for group in state["param_groups"]
            ]
            named: dict[str, Any] = {
                "state": {names[number]: part for number, part in state["state"].items()},
                "param_groups": groups,
            }
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint

    def _list_names(self, optimizer: Optimizer) -> list[str]:
        """List the names of an optimizer's parameters in the order of its groups, in which PyTorch numbers them."""
        assert self.model is not None
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def require_divisible(model: LightningModule) -> None:
    """Refuse a model or a precision that cannot be trained in parts.

    Raises:
        HardwareError: if the model cannot be cut.
    """
    if not model.automatic_optimization:
        msg = (
            "PIPELINE_STRATEGY fsdp cuts weights into parts, which a model of two optimizers does not allow: one "
            "network's gradients pass through the other's weights; expected auto or ddp"
        )
        raise HardwareError(msg)
    if not is_overridden("configure_model", model):
        msg = (
            f"PIPELINE_STRATEGY fsdp: {type(model).__module__} does not say how its weights are cut into parts "
            "(configure_model, see pipeline/models/transformer.py); expected auto or ddp"
        )
        raise HardwareError(msg)
    precision = environment.read_precision()
    if precision not in PRECISIONS:
        msg = f"PIPELINE_PRECISION: expected {', '.join(PRECISIONS)} with PIPELINE_STRATEGY fsdp, got {precision!r}"
        raise HardwareError(msg)


def make_strategy(model: LightningModule, world: int, timeout: timedelta) -> Sharded:
    """Return the strategy that cuts the model into as many parts as there are processes.

    Raises:
        HardwareError: if the model cannot be cut.
    """
    require_divisible(model)
    return Sharded(world, timeout)


def copy_whole(model: LightningModule) -> LightningModule:
    """Return the model to sample and save: of one that is about to be sharded, a copy in the first process.

    The other processes get an empty one: a step that only they take, such as merging adapters, would wait for the first
    process for ever.
    """
    if not is_asked_for():
        return model
    return copy.deepcopy(model) if processes.get_rank() == 0 else LightningModule()


def gather(model: LightningModule, whole: LightningModule) -> None:
    """Bring all weights of a sharded model into the first process's `whole`; every process calls it."""
    if not is_sharded(model):
        return
    weights = get_model_state_dict(model, options=WHOLE)
    if processes.get_rank() == 0:
        whole.to(model.device).load_state_dict(weights)


def release(model: LightningModule, whole: LightningModule) -> None:
    """Give the device's memory of a gathered copy back to the training."""
    if whole is not model:
        whole.cpu()


def is_sharded(model: LightningModule) -> bool:
    """Say whether a process holds only a part of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def replicate(values: Tensor) -> Tensor:
    """Return a tensor that may be cut into parts as a plain one; every process calls it."""
    return values.full_tensor() if isinstance(values, DTensor) else values
