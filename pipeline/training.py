"""Fits a LightningModule: hardware from the environment, resume state outside DVC's outputs, a record of the run.

Hardware is set by environment variables and never in params.yaml, so that DVC does not retrain when the machine
changes: PIPELINE_ACCELERATOR, PIPELINE_DEVICES, PIPELINE_NODES, PIPELINE_STRATEGY, PIPELINE_PRECISION (as Lightning's
Trainer takes them; default: all CUDA devices of the machine, else the CPU, in float32), PIPELINE_CHECKPOINT_SECONDS
(60), PIPELINE_TIMEOUT (120: seconds until a process that does not answer ends all), PIPELINE_DETERMINISTIC (true; warn:
on a GPU, take operators whose bits differ from run to run where there is no other).
"""

import hashlib
import json
import logging
import math
import os
import random
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import Tensor, nn

from pipeline import artifacts, plugins
from pipeline.batches import Data, Examples
from pipeline.history.record import Record
from pipeline.randomness import derive_seed, seed_global
from pipeline.runtime import checkpoints, processes, sharding
from pipeline.runtime.preemption import SIGNALS, PreemptedError
from pipeline.runtime.processes import HardwareError, Pulse

log = logging.getLogger(__name__)
CODE = ("training.py", "randomness.py", "data/loading.py", "models/layers.py")  # that every training runs
ASK_SECONDS = 1.0  # between questions among processes
REPEATS = 5.0  # seconds in which a signal repeated is the same wish: torchrun and timeout send it twice
LOGGED_LINES = 200
PREVIEWS = 8
LEAST_SCALE = 2.0**-20  # of a loss in float16, halved with every update that is left out
NOISE = "litlogger|`weights_only` was not set|TPU available"
# Averaged weights are in evaluation mode throughout; the other one is Lightning's own affair.
WARNINGS = r"Found \d+ module\(s\) in eval mode|`isinstance\(treespec, LeafSpec\)` is deprecated"


class NonFiniteError(RuntimeError):
    """A loss or gradient stopped being finite; the message names the step and the value. Nothing was updated by it."""


def fingerprint(*parts: Any) -> str:
    """Hash all that a training depends on to 16 hex digits, the name of its state's folder.

    Args:
        parts: JSON values, and paths of files, whose content counts; the code and the libraries that every training
            runs are added.

    Raises:
        ArtifactError: if a value is not plain: it could not be written beside the weights either.
    """
    common = [*(plugins.PACKAGE / name for name in CODE), version("torch"), version("pytorch-lightning")]
    content = [part.read_bytes().hex() if isinstance(part, Path) else part for part in (*parts, *common)]
    try:
        text = json.dumps(content, sort_keys=True)
    except TypeError as error:
        msg = f"a config holds more than plain values (numbers, texts, lists, mappings): {error}"
        raise artifacts.ArtifactError(msg) from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Recorder(Callback):
    """Writes about 200 lines of values, means over all processes, and 8 previews to the record.

    Of a sharded model, `whole` receives the weights for each preview.
    """

    def __init__(
        self,
        record: Record | None,
        steps: int,
        preview: Callable[[int], None] | None = None,
        whole: LightningModule | None = None,
    ) -> None:
        self.record = record
        self.steps = steps
        self.every = max(1, steps // LOGGED_LINES)
        self.preview_every = max(1, steps // PREVIEWS)
        self.preview = preview
        self.whole = whole
        self.rates: dict[str, float] = {}

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the learning rates of this update: at the batch's end a scheduler has set the next one's."""
        position = next(index for index, known in enumerate(trainer.optimizers) if known is optimizer)
        for group, settings in enumerate(optimizer.param_groups):
            self.rates[f"learning_rate_{position}_{group}"] = settings["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Read the step's values where a line is due: `.item()` waits for the device, so not at every step."""
        step = index + 1
        if step % self.every and step != self.steps:
            return
        values = {key: float(value) for key, value in outputs.items()}
        if trainer.world_size > 1:
            means = trainer.strategy.reduce(torch.tensor(list(values.values()), device=module.device))
            values = dict(zip(values, means.tolist(), strict=True))
        if broken := {key: value for key, value in values.items() if not math.isfinite(value)}:
            msg = f"step {step}: {broken} is not finite; lower the learning rate or the penalties' weights"
            raise NonFiniteError(msg)
        is_due = step % self.preview_every < self.every or step == self.steps
        if is_due and self.whole is not None:
            sharding.gather(module, self.whole)
        if self.record is None or not trainer.is_global_zero:
            return
        self.record.log(step, values | self.rates)
        if self.preview is not None and is_due:
            was_training = module.training
            self.preview(step)
            module.train(was_training)
            if self.whole is not None:
                sharding.release(module, self.whole)


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
    """Train for `steps` batches; with `state`, resume from its checkpoint and keep one there about once a minute."""
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
        extra.append(Saver(state, float(os.environ.get("PIPELINE_CHECKPOINT_SECONDS", "60")), start))
    data = Data(examples, steps=steps, batch_size=batch_size, seed=seed, start=start)
    trainer = _make_trainer(model, clip_norm, extra)
    trainer.fit(model, data, ckpt_path=str(found[0]) if found else None, weights_only=True)
    return trainer


class StepSeeder(Callback):
    """Seeds each step's global generators, and says where this process is.

    No model here draws from the global generators without seeding them, but a plug-in, or a library that it uses, may:
    with numbers that are a function of (seed, step, rank) a resumed training draws what an uninterrupted one does.
    """

    def __init__(self, seed: int, start: int) -> None:
        self.seed = seed
        self.start = start
        self.pulse = Pulse()

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuse to start where the processes would resume at different steps: before a sharded one is handed out."""
        if trainer.world_size > 1:
            ends = torch.tensor([self.start, -self.start], device=module.device)
            last, first = trainer.strategy.reduce(ends, reduce_op="max").tolist()
            if last != -first:
                msg = f"processes would resume at steps {-first} to {last}: all nodes must see one {artifacts.STATE}"
                raise HardwareError(msg)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Have gradients unscaled before the update: Lightning clips none that a fused optimizer would unscale."""
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
        """Tell a process that waits for the others' gradients from one that has them."""
        self.pulse.beat(trainer.fit_loop.epoch_loop.batch_idx + 1)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Tell the supervisor at once: the record's closing may take a while."""
        if "does not have a deterministic implementation" in str(exception):
            exception.add_note("PIPELINE_DETERMINISTIC=warn takes it all the same: bits then differ from run to run")
        processes.report(f"{type(exception).__name__}: {exception}")


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


class Saver(Callback):
    """Saves a checkpoint every `seconds`, and when SIGTERM or Ctrl-C asks to stop: then it ends the training.

    ModelCheckpoint's timer never fires with two optimizers, and Lightning's own SIGTERM ends with status 0.
    """

    def __init__(self, folder: Path, seconds: float, start: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.start = start
        self.saved = self.asked = time.monotonic()
        self.asked_step = self.ask_step = 0
        self.received: int | None = None
        self.received_at = 0.0
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the signals over, after Lightning has; all processes have found what they resume from."""
        self.saved = time.monotonic()
        if trainer.is_global_zero:
            checkpoints.discard_after(self.folder, self.start)
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, frame: Any) -> None:
        """Note the signal; after some seconds the same one again has its usual effect."""
        if self.received is None:
            self.received, self.received_at = number, time.monotonic()
        elif time.monotonic() - self.received_at > REPEATS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Save where it is due; all processes save together or none."""
        step = index + 1
        due, stop = time.monotonic() - self.saved > self.seconds, self.received is not None
        if trainer.world_size > 1:
            due, stop = self._ask(trainer, module, step, due=due, stop=stop)
        saved = False
        if due or stop:
            saved = checkpoints.save(trainer, self.folder, step)
            self.saved = time.monotonic()
        if stop and step < trainer.num_training_batches:
            name = signal.Signals(self.received).name if self.received else "a signal to another process"
            state = "the state is saved" if saved else "the state could not be saved, an earlier one stays"
            msg = f"{name} at step {step}: {state}; the same command goes on from there"
            raise PreemptedError(msg)

    def _ask(self, trainer: Trainer, module: LightningModule, step: int, *, due: bool, stop: bool) -> tuple[bool, bool]:
        """Ask all processes, about once a second: at steps that follow from what all have heard the last time."""
        if step < self.ask_step:
            return False, False
        pace = (time.monotonic() - self.asked) / max(1, step - self.asked_step)
        flags = torch.tensor([float(due), float(stop), pace], device=module.device)
        any_due, any_stop, slowest = trainer.strategy.reduce(flags, reduce_op="max").tolist()
        self.asked, self.asked_step = time.monotonic(), step
        self.ask_step = step + max(1, int(ASK_SECONDS / max(slowest, 1e-6)))
        return bool(any_due), bool(any_stop)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


def _make_trainer(model: LightningModule, clip_norm: float | None, callbacks: list[Callback]) -> Trainer:
    environment = os.environ.get
    layout = processes.read_layout() if processes.is_member() else processes.Layout(1, 1, 0)
    devices: Any = environment("PIPELINE_DEVICES", "auto")
    if devices in {"auto", "-1"} or devices.isdigit() or layout.devices == 1:
        devices = layout.devices
    accelerator = environment("PIPELINE_ACCELERATOR", "auto")
    if accelerator == "auto":  # of an Apple GPU, Lightning's choice, float64 is missing
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    batch_norm = layout.world > 1 and has_batch_norm(model)
    if batch_norm and accelerator == "cpu":
        log.warning("batch normalization takes its statistics from each process's part of a batch: the result differs")
    determinism = _choose_determinism()
    # PyTorch would fill all new memory with NaN as well: one more kernel for many a tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    plugin_list: list[Any] = [checkpoints.Writer()]
    if processes.uses_slurm():
        plugin_list.append(SLURMEnvironment(auto_requeue=False))  # its signal is ours, and ends with status 75
    elif "LOCAL_RANK" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        plugin_list.append(LightningEnvironment())  # in a pod of Kubernetes another one would be taken
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=layout.nodes,
        strategy=_choose_strategy(model, layout.world),
        precision=environment("PIPELINE_PRECISION", "32-true"),  # type: ignore[arg-type]
        gradient_clip_val=clip_norm,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        sync_batchnorm=batch_norm and accelerator != "cpu",
        deterministic=determinism if torch.cuda.is_available() and accelerator != "cpu" else None,
        plugins=plugin_list,
        callbacks=[*callbacks, TQDMProgressBar(refresh_rate=20)],
    )


def _choose_determinism() -> Any:
    """Return Lightning's word for operators of equal bits: "warn" alone leaves attention's backward pass without.

    Raises:
        HardwareError: if the environment names something else.
    """
    given = os.environ.get("PIPELINE_DETERMINISTIC", "true")
    choices = {"true": True, "warn": "warn"}
    if given not in choices:
        msg = f"PIPELINE_DETERMINISTIC is {given!r}, expected {' or '.join(choices)}"
        raise HardwareError(msg)
    return choices[given]


def has_batch_norm(model: nn.Module) -> bool:
    """Say whether a layer normalizes by the statistics of a batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())  # noqa: SLF001


def _choose_strategy(model: LightningModule, world: int) -> str | Strategy:
    """Return DDP with a time-out for several processes, FSDP, or what else PIPELINE_STRATEGY names.

    Raises:
        HardwareError: if the model cannot be trained by it.
    """
    name = os.environ.get("PIPELINE_STRATEGY", "auto")
    timeout = timedelta(seconds=float(os.environ.get("PIPELINE_TIMEOUT", "120")))
    if name == "fsdp":
        return sharding.make_strategy(model, world, timeout) if world > 1 else "auto"
    if "fsdp" in name or "deepspeed" in name or "model_parallel" in name:
        msg = f"PIPELINE_STRATEGY {name} cuts weights into parts in a way that is not supported, expected fsdp"
        raise HardwareError(msg)
    unused = "ddp_find_unused_parameters_true"
    if world == 1 or name not in {"auto", "ddp", unused}:
        return name
    # Two optimizers: each backward leaves the other network's parameters without gradients.
    return DDPStrategy(timeout=timeout, find_unused_parameters=name == unused or not model.automatic_optimization)
