"""One of several processes, for tests/runtime/test_processes.py: a stage that trains small models and has accidents.

python -m tests.ranks '{"out": "<folder>", "names": ["gan"], "fault": {"kind": "kill", "rank": 1, "step": 5}}'
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.kinds.points import make_fields as point_fields
from pipeline.runtime import preemption, processes
from pipeline.stages.__main__ import run
from tests.forks import Child

if __name__ == "__main__":
    preemption.begin()
    if processes.are_to_be_started():  # before imports of seconds, which a supervisor does not need

        def tell(cause: str) -> None:
            print(f"told: {cause}", flush=True)

        if "TEST_FORKED_RANKS" in os.environ:
            processes.subprocess = SimpleNamespace(Popen=Child)  # type: ignore[attr-defined]

        def supervise(text: str) -> None:
            processes.supervise("ranks", text, tell, module="tests.ranks")

        run(supervise, sys.argv[-1:], "ranks", "", several=True)
        sys.exit()

import torch
from pytorch_lightning import Callback

from pipeline import params, plugins
from pipeline.batches import Examples, Rows
from pipeline.history.recorder import Recorder
from pipeline.runtime import agreement, sharding
from pipeline.runtime.agreement import Agreement
from pipeline.training import fit
from tests.test_training import make

STEPS = 10
CHANGES: dict[str, dict[str, Any]] = {
    "vae": {"dropout": 0.0, "shift": 2},
    "transformer": {"dropout": 0.0},
    "adapters": {"dropout": 0.0},
}


def make_points() -> tuple[Any, Any, Examples]:
    """A GAN of points: two optimizers, no batch norm, a penalty with noise of its own."""
    config = params.load().models["gan"]
    changes = {"batch_size": 8, "steps": STEPS, "generator_width": 16, "discriminator_width": 16}
    changes |= {"gradient_penalty": 1.0, "penalty_every": 2}
    config = config.model_validate({**config.model_dump(), **changes})
    generator = torch.Generator().manual_seed(0)
    points = Rows({"points": torch.randn(36, 2, generator=generator), "labels": torch.arange(36) % 4})
    return plugins.load("models", "gan").Model(config, point_fields(2, 4), seed=0), config, points


class Accident(Callback):
    """What may happen to one rank at one step, the first time that it comes there."""

    def __init__(self, kind: str, rank: int, step: int, folder: Path) -> None:
        self.kind = kind
        self.rank = rank
        self.step = step
        self.marker = folder / "accident"

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """Make it happen."""
        if self.kind == "slow":
            time.sleep(0.05)
        if trainer.global_rank != self.rank or index + 1 != self.step or self.marker.exists():
            return
        self.marker.write_text(str(time.time()))
        match self.kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                msg = "an error of rank 1"
                raise ValueError(msg)
            case "exit":
                sys.exit(0)
            case "leave":
                os._exit(0)
            case "hang":
                time.sleep(600)
            case "term":
                os.kill(os.getpid(), signal.SIGTERM)


def train(name: str, out: Path, fault: dict[str, Any] | None, steps: int) -> dict[str, torch.Tensor]:
    """Train one model and return its weights."""
    model, config, examples = make_points() if name == "points" else make(name, **CHANGES.get(name, {}))
    accident = [Accident(**fault, folder=out)] if fault else []
    is_other = bool(fault) and fault["kind"] == "other" and fault["rank"] == processes.get_rank()
    facts = agreement.describe("ranks", name, models={name: {"learning_rate": 0.5 if is_other else 0.1}})
    clip = config.model_dump().get("clip_norm")
    whole = sharding.copy_whole(model)
    callbacks = [Agreement(facts), *accident, Recorder(None, steps, whole=whole)]
    fit(model, examples, steps=steps, batch_size=8, seed=0, clip_norm=clip, state=out / name, callbacks=callbacks)
    sharding.gather(model, whole)
    if sharding.is_sharded(model):
        held = sum(parameter.to_local().numel() for parameter in model.parameters())  # type: ignore[operator]
        (out / f"{processes.get_rank()}.held").write_text(str(held))
    return {} if sharding.is_sharded(whole) else whole.state_dict()


def main(text: str) -> None:
    """Train the models of a JSON text in this process."""
    spec = json.loads(text)
    out = Path(spec["out"])
    (out / f"{processes.get_rank()}.pid").write_text(str(os.getpid()))
    weights = {name: train(name, out, spec.get("fault"), spec.get("steps", STEPS)) for name in spec["names"]}
    torch.save(weights, out / f"{processes.get_rank()}.pt")
    if (spec.get("fault") or {}).get("kind") == "full":  # no disk takes a byte from now on
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


if __name__ == "__main__":
    run(main, sys.argv[-1:], "ranks", "", several=True)
