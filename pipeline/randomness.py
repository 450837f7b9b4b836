"""Random numbers as a pure function of (seed, purpose, position).

No code in this package draws from a global generator to decide what data a model sees, which noise it gets or what
it samples: each place derives its own generator from the run's seed and a few words. Resume, the number of workers
and the order of the stages therefore change nothing. torch is imported where it is used: `derive_seed` needs none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Hash (seed, purpose) to an integer in [0, 2**63): equal input, equal output, on every platform."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator on `device` for one purpose, such as (0, "noise", step)."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw standard normal float32 numbers of `shape` on the generator's device."""
    import torch

    return torch.randn(*shape, generator=generator, device=generator.device)


def shuffle(values: Tensor) -> Tensor:
    """Return the rows of values (N, ...), on the CPU, in a random order that depends on their content only.

    The same rows in any order give the same result, so that what is made of a part of it depends on no order.
    """
    import numpy as np
    import torch

    rows = np.ascontiguousarray(values.numpy()).reshape(len(values), -1).view(np.uint8)
    order = torch.from_numpy(rows.view(f"V{rows.shape[1]}").ravel().argsort(kind="stable"))
    return values[order[torch.randperm(len(values), generator=make_generator(0, "shuffle", len(values)))]]


class Part(NamedTuple):
    """Which of several processes this is, in one training: the batch is cut into `world` equal parts."""

    rank: int
    world: int


WHOLE = Part(0, 1)


def this_part() -> Part:
    """Return this process's part of every training batch, as torch.distributed knows it."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return WHOLE
    return Part(distributed.get_rank(), distributed.get_world_size())


def share(draw: Callable[[int], Tensor], count: int, part: Part = WHOLE, dim: int = 0) -> Tensor:
    """Return one process's part of random numbers that every process draws for the whole batch.

    The number of processes therefore changes none of them.

    Args:
        draw: returns the numbers of as many examples as it is asked for; each process draws from an equal generator.
        count: examples of this process's part.
        part: which part this is.
        dim: dimension of the examples.
    """
    return draw(count * part.world).narrow(dim, part.rank * count, count)


def seed_global(seed: int) -> None:
    """Seed PyTorch's global generators as torch.manual_seed does, but faster where there is only a CPU.

    torch.manual_seed formats a stack trace for each kind of accelerator that has not been started, at every call.
    """
    import torch

    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def seeded(seed: int, *purpose: str | int) -> AbstractContextManager[None]:
    """Context in which the global generator is seeded; afterwards it is as before. For weights and dropout."""
    return _Seeded(derive_seed(seed, *purpose))


class _Seeded(AbstractContextManager[None]):
    def __init__(self, seed: int) -> None:
        import torch

        self.seed = seed
        self.fork = torch.random.fork_rng()

    def __enter__(self) -> None:
        self.fork.__enter__()
        seed_global(self.seed)

    def __exit__(self, *exception: object) -> None:
        self.fork.__exit__(*exception)  # type: ignore[arg-type]
