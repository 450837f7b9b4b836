"""Fits a LightningModule: seeds each step, guards against losses and gradients that are not finite, resumes.

runtime/environment.py lists the environment variables that choose the hardware.
"""

import hashlib
import itertools
import json
import logging
import random
import re
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from pipeline import artifacts
from pipeline.batches import Data, Examples
from pipeline.randomness import derive_seed, seed_global
from pipeline.runtime import checkpoints, environment, hardware, processes, progress, sharding
from pipeline.runtime.environment import HardwareError
from pipeline.runtime.processes import Pulse
from pipeline.runtime.saver import Saver

LOGGED_LINES = 200  # of values per training
LEAST_SCALE = 2.0**-20  # of a loss in float16, halved with every update that is left out
NOISE = "litlogger|`weights_only` was not set|TPU available"
# Averaged weights are always in evaluation mode; Lightning itself causes the second warning.
WARNINGS = r"Found \d+ module\(s\) in eval mode|`isinstance\(treespec, LeafSpec\)` is deprecated"


class NonFiniteError(artifacts.ArtifactError):
    """A loss or gradient stopped being finite; the message names the step and the value. Nothing was updated by it."""


def fingerprint(*parts: Any) -> str:
    """Return the name of a training's state folder: a hash of everything that the training depends on, 16 hex digits.

    Args:
        parts: JSON values, such as configs and the digest of the code; the libraries' versions are added.

    Raises:
        ArtifactError: if a part is not plain, and so could not be stored with the weights either.
    """
    try:
        text = json.dumps([*artifacts.encode(parts), version("torch"), version("pytorch-lightning")], sort_keys=True)
    except TypeError as error:
        msg = f"a config holds more than plain values (numbers, texts, lists, mappings): {error}"
        raise artifacts.ArtifactError(msg) from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fit(
    model: LightningModule,
    examples: Examples,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    clip_norm: float | None = None,
    state: Path | None = None,
    callbacks: list[Callback] | None = None,
) -> Trainer:
    """Train for `steps` batches; with `state`, resume from its checkpoint and save one there about once a minute."""
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):  # advertising, and a default we set
        logging.getLogger(f"pytorch_lightning.{name}").addFilter(lambda entry: not re.search(NOISE, str(entry.msg)))
    warnings.filterwarnings("ignore", WARNINGS)
    found = checkpoints.find(state) if state else None
    start = found[1] if found else 0
    if found:
        print(f"resuming at step {start} of {steps} from {found[0]}")
    extra: list[Callback] = [StepSeeder(seed, start), Guard(steps), *(callbacks or [])]
    if state:
        checkpoints.require_writable(state)
        checkpoints.require_space(state, model)
        extra.append(Saver(state, environment.read_checkpoint_seconds(), start))
    data = Data(examples, steps=steps, batch_size=batch_size, seed=seed, start=start)
    trainer = Trainer(
        **hardware.choose(model),
        gradient_clip_val=clip_norm,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[*extra, progress.choose(steps)],
    )
    trainer.fit(model, data, ckpt_path=str(found[0]) if found else None, weights_only=True)
    return trainer


class StepSeeder(Callback):
    """Seeds each step's global generators, and reports which step this process has reached.

    No model here draws from the global generators without seeding them, but a plug-in, or a library that it uses, may:
    with numbers that are a function of (seed, step, rank) a resumed training draws what an uninterrupted one does.
    """

    def __init__(self, seed: int, start: int) -> None:
        self.seed = seed
        self.start = start
        self.pulse = Pulse()

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuse to start, before a sharded checkpoint is read, if the processes would resume at different steps."""
        if trainer.world_size > 1:
            ends = torch.tensor([self.start, -self.start], device=module.device)
            last, first = trainer.strategy.reduce(ends, reduce_op="max").tolist()
            if last != -first:
                msg = f"processes would resume at steps {-first} to {last}: all nodes must see one {artifacts.STATE}"
                raise HardwareError(msg)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Unscale gradients before the update: Lightning does not clip those that a fused optimizer would unscale."""
        for optimizer in trainer.optimizers:
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined] # noqa: SLF001

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        """Seed PyTorch, NumPy and Python."""
        seed = derive_seed(self.seed, "global", index, trainer.global_rank)
        seed_global(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is the point
        random.seed(seed)
        self.pulse.beat(index + 1)

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        """Report that this process has its gradients, and no longer waits for those of other processes."""
        self.pulse.beat(trainer.fit_loop.epoch_loop.batch_idx + 1)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Tell the supervisor at once, because closing the record may take a while."""
        if "does not have a deterministic implementation" in str(exception):
            exception.add_note("PIPELINE_DETERMINISTIC=warn uses it anyway: bits then differ from run to run")
        processes.report(f"{type(exception).__name__}: {exception}")


class OwnSettings(Callback):
    """Lets a training that goes on with the state of another one follow its own config, not that of the checkpoint.

    Learning rates, decays and schedules are in the checkpoint too. A schedule goes on at the step that was reached, as
    if it had been this one from the first step.
    """

    def __init__(self) -> None:
        self.stored: list[list[set[str]]] = []  # names of the checkpoint's settings, by optimizer and group
        self.groups: list[list[dict[str, Any]]] = []

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note which settings the checkpoint has."""
        self.stored = [[{*group} for group in each["param_groups"]] for each in checkpoint["optimizer_states"]]

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Note the settings of every optimizer before the checkpoint's replace them.

        Raises:
            ArtifactError: if the checkpoint is of another optimizer.
        """
        names = [[{*group} for group in each.param_groups] for each in trainer.optimizers]
        if self.stored and self.stored != names:
            found, expected = (", ".join(sorted(set().union(*itertools.chain(*side)))) for side in (self.stored, names))
            msg = f"the start was trained by another optimizer: expected the settings {expected}; its state has {found}"
            raise artifacts.ArtifactError(msg)
        self.groups = [
            [{name: value for name, value in group.items() if name != "params"} for group in each.param_groups]
            for each in trainer.optimizers
        ]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Put them back."""
        for optimizer, groups in zip(trainer.optimizers, self.groups, strict=True):
            for group, own in zip(optimizer.param_groups, groups, strict=True):
                group.update(own)
        for config in trainer.lr_scheduler_configs:
            if isinstance(scheduler := config.scheduler, LambdaLR):
                settings = scheduler.optimizer.param_groups
                scheduler.base_lrs = [group["initial_lr"] for group in settings]
                factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
                for group, base, factor in zip(settings, scheduler.base_lrs, factors, strict=True):
                    group["lr"] = base * factor


class Guard(Callback):
    """Stops at a loss or gradient that is not finite.

    On a CPU before the update. Reading the answer from a GPU would stop it at every step: there the answers of all
    steps are kept on it and read where a line is due, and checkpoints that are not finite are not written.
    """

    def __init__(self, steps: int, *, waits: bool | None = None) -> None:
        self.steps = steps
        self.every = max(1, steps // LOGGED_LINES)
        self.waits = waits
        self.is_finite: Tensor | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Choose by device."""
        if self.waits is None:
            self.waits = module.device.type == "cpu"

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        """Look at the loss: an infinite one can have finite gradients."""
        self._note(trainer, loss.detach().isfinite().all(), lambda: f"the loss is {float(loss)}, which")

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at the norm of every gradient that this optimizer is about to use."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # of float16: it leaves out such an update, and scales the next loss less
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = sharding.replicate(torch.stack(torch._foreach_norm([p.grad for p in parameters])))  # noqa: SLF001

        def name() -> str:
            names = {id(parameter): name for name, parameter in module.named_parameters()}
            return f"the gradient of {names[id(parameters[int((~norms.isfinite()).nonzero()[0])])]}"

        self._note(trainer, norms.isfinite().all(), name)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Read what a GPU has kept."""
        step = index + 1
        if step % self.every and step != self.steps:
            return
        if self.is_finite is not None and not bool(self.is_finite):
            msg = f"a loss or gradient of the {self.every} steps to step {step} is not finite; lower the learning rate"
            raise NonFiniteError(msg)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() < LEAST_SCALE:
            msg = f"step {step}: no gradient is finite in float16, however little the loss is scaled: no step counts"
            raise NonFiniteError(msg)

    def _note(self, trainer: Trainer, answer: Tensor, describe: Callable[[], str]) -> None:
        if not self.waits:
            self.is_finite = answer if self.is_finite is None else self.is_finite & answer
        elif not bool(answer):
            step = trainer.fit_loop.epoch_loop.batch_idx + 1
            msg = f"step {step}: {describe()} is not finite; lower the learning rate or the penalties' weights"
            raise NonFiniteError(msg)
