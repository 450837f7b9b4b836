"""Floating-point operations per second of each training, as a share of the machine's own matrix product."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.training import fit
from speed.timing import Row, summarize, time_it
from speed.trainings import SKIPPED, make, time_pipeline


def measure() -> Iterator[Row]:
    """Floating-point operations a second of each training, as a share of the machine's own matrix product.

    The GAN without its penalties: PyTorch's counter cannot follow gradients of gradients.
    """
    square = torch.randn(1536, 1536)
    peak = max(2 * 1536**3 / time_it(lambda: square @ square) for _ in range(10))
    kinds: dict[str, dict[str, Any]] = {"gan": {"r1": 0.0, "r2": 0.0}, "vae": {}, "transformer": {}}
    for kind, changes in kinds.items():
        model, examples = make(kind, steps=4, **changes)
        with FlopCounterMode(display=False) as counter:
            fit(model, examples, steps=4, batch_size=model.config.batch_size, seed=0)
        each = counter.get_total_flops() / 4
        rates = [each * (60 - SKIPPED) / time_pipeline(kind, 60, **changes) / peak for _ in range(3)]
        detail = f"{each / 1e9:.3g} GFLOP a step; matrix product {peak / 1e9:.3g} GFLOP/s"
        what = f"{kind} without its penalties" if changes else kind
        title = f"share of the matrix product's rate that training {what} reaches"
        yield summarize(f"rate_{kind}", title, ">= 0.5", rates, detail, count=f"{60 - SKIPPED} steps")
