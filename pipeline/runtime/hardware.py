"""Chooses what a training runs on, from the environment: devices, strategy, precision, determinism."""

import logging
from datetime import timedelta
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy, Strategy, StrategyRegistry
from torch import nn

from pipeline.runtime import environment, processes, sharding, writer
from pipeline.runtime.environment import HardwareError

log = logging.getLogger(__name__)
UNUSED = "ddp_find_unused_parameters_true"


def choose(model: LightningModule) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that depend on the machine, and none that a model's config sets.

    Raises:
        HardwareError: if the environment names hardware that does not exist, or that this model cannot use.
    """
    layout = processes.read_layout() if processes.is_member() else processes.Layout(1, 1, 0)
    accelerator = environment.read_accelerator()
    if accelerator == "auto":  # Lightning would choose an Apple GPU, which lacks float64
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    is_cpu = accelerator == "cpu"
    batch_norm = layout.world > 1 and has_batch_norm(model)
    if batch_norm and is_cpu:
        log.warning("batch normalization uses the statistics of each process's part of a batch: the result differs")
    determinism = environment.read_determinism()
    # PyTorch would also fill all new memory with NaN, at the price of one more kernel for many tensors.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return {
        "accelerator": accelerator,
        "devices": _choose_devices(layout.devices, is_cpu=is_cpu),
        "num_nodes": layout.nodes,
        "strategy": _choose_strategy(model, layout.world),
        "precision": environment.read_precision(),
        "sync_batchnorm": batch_norm and not is_cpu,
        "deterministic": determinism if torch.cuda.is_available() and not is_cpu else None,
        "plugins": [writer.Writer(), *_choose_cluster()],
    }


def has_batch_norm(model: nn.Module) -> bool:
    """Say whether a layer normalizes by the statistics of a batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())  # noqa: SLF001


def _choose_devices(count: int, *, is_cpu: bool) -> int | list[int]:
    """Return the indices that PIPELINE_DEVICES lists, if this process may use them all, else a count."""
    devices = environment.read_devices()
    return devices if isinstance(devices, list) and len(devices) == count and not is_cpu else count


def _choose_cluster() -> list[Any]:
    """Return the plug-in that tells Lightning which process this is, where Lightning would not find it."""
    if processes.uses_slurm():
        return [SLURMEnvironment(auto_requeue=False)]  # our own handler answers SLURM's signal, with status 75
    if environment.is_set("LOCAL_RANK") and not environment.is_set("TORCHELASTIC_RUN_ID"):
        return [LightningEnvironment()]  # in a pod of Kubernetes, Lightning would choose another one
    return []


def require_available() -> None:
    """Refuse hardware and a strategy that this machine does not have, before a stage touches anything.

    Raises:
        HardwareError: with the variable.
    """
    name = environment.read_accelerator()
    kinds = {"auto": ["cpu"], "gpu": ["cuda", "mps"]}.get(name, [name])
    if not any(AcceleratorRegistry[kind]["accelerator"].is_available() for kind in kinds):
        msg = f"PIPELINE_ACCELERATOR: expected auto or cpu, as PyTorch finds no such device here, got {name!r}"
        raise HardwareError(msg)
    name = environment.read_strategy()
    if name == "fsdp":
        return
    if "fsdp" in name or "deepspeed" in name or "model_parallel" in name:
        msg = f"PIPELINE_STRATEGY: {name} cuts weights into parts in a way that is not supported; expected fsdp"
        raise HardwareError(msg)
    if name not in {"auto", *StrategyRegistry.available_strategies()}:
        msg = f"PIPELINE_STRATEGY: expected auto, ddp, fsdp or another strategy of Lightning, got {name!r}"
        raise HardwareError(msg)


def _choose_strategy(model: LightningModule, world: int) -> str | Strategy:
    """Return DDP with a time-out for several processes, FSDP, or the strategy that PIPELINE_STRATEGY names.

    Raises:
        HardwareError: if there is no such strategy, or it cannot train the model.
    """
    require_available()
    name = environment.read_strategy()
    timeout = timedelta(seconds=environment.read_timeout())
    if name == "fsdp":
        return sharding.make_strategy(model, world, timeout) if world > 1 else "auto"
    if world == 1 or name not in {"auto", "ddp", UNUSED}:
        return name
    # Two optimizers: each backward pass leaves the other network's parameters without gradients.
    return DDPStrategy(timeout=timeout, find_unused_parameters=name == UNUSED or not model.automatic_optimization)
