"""The one LightningDataModule: prepared tensors in memory, batches by step.

The order is a pure function of (seed, epoch): sample p of the endless stream is entry p % n of the permutation of
epoch p // n. A training is one Lightning epoch of exactly `steps` batches, so that a step has one meaning for every
model, and a resumed training starts its stream at the step it reached. Each process takes its share of each global
batch: the world size changes neither order nor content.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from pipeline.randomness import make_generator

Batch = dict[str, Tensor]


class Examples(Protocol):
    """A set of examples that hands out batches by index."""

    def __len__(self) -> int:
        """Count the examples of one epoch."""

    def batch(self, indices: Tensor, epoch: int) -> Batch:
        """Return the examples at `indices`, int64 (B,), of an epoch."""


class Rows:
    """Tensors of one length by their field's name, maybe memory-mapped: images uint8 (N, C, H, W), labels (N,), ..."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def batch(self, indices: Tensor, epoch: int) -> Batch:
        """Return the tensors at the indices (B,).

        NumPy copies in this thread only; torch would wake all of its own, which takes milliseconds on busy cores.
        """
        del epoch
        rows = indices.numpy()
        return {name: torch.from_numpy(tensor.numpy()[rows]) for name, tensor in self.tensors.items()}


class Steps:
    """The training batches of steps `start` to `steps`; what Lightning sees as its data loader."""

    def __init__(
        self,
        examples: Examples,
        *,
        steps: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            msg = f"batch_size is over all processes: {batch_size} cannot be shared by {world}"
            raise ValueError(msg)
        self.examples = examples
        self.steps = steps
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.examples)
        share = self.batch_size // self.world
        known: dict[int, Tensor] = {}
        for step in range(self.start, self.steps):
            first = step * self.batch_size + self.rank * share
            parts: list[tuple[int, Tensor]] = []
            while share_left := share - sum(len(indices) for _, indices in parts):  # an epoch may end in a batch
                epoch, position = divmod(first + share - share_left, count)
                if epoch not in known:
                    known = {epoch: torch.randperm(count, generator=make_generator(self.seed, "order", epoch))}
                parts.append((epoch, known[epoch][position : position + share_left]))
            batches = [self.examples.batch(indices, epoch) for epoch, indices in parts]
            if len(batches) == 1:
                yield batches[0]
            else:
                yield {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


class Data(LightningDataModule):
    """The training batches of a run."""

    def __init__(self, train: Examples, *, steps: int, batch_size: int, seed: int, start: int = 0) -> None:
        super().__init__()
        self.examples = train
        self.steps = steps
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def train_dataloader(self) -> Steps:
        """Return this process's share of every batch from `start` on."""
        trainer = self.trainer
        return Steps(
            self.examples,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            start=self.start,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )
