"""Which images make up which batch.

Nothing here remembers where it is.  Batch b of process r is computed from the seed and b, the augmentation of an image
from the seed, the epoch and the image's index: so an interrupted run sees the same batches as one that went through, and
the number of workers changes nothing.
"""

import os
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from dilated_seg import UserError

Key = tuple[int, int] | int | None  # (epoch, index) in training; index, or None for a padding image, in evaluation


class TrainingOrder(Sampler[list[Key]]):
    """Batches of (epoch, index): each epoch a new permutation, the last incomplete batch left out.

    Args:
        size: Images in the split.
        batch_size: Images a process takes.
        seed: Of the run.
        rank: This process; all processes cut their share out of the same permutation.
        world: Number of processes.
        done: Says how many batches were taken before, so that iteration starts where the run stands.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, done: Callable[[], int] = int
    ) -> None:
        self.size, self.batch_size, self.seed, self.rank, self.world, self.done = (
            size, batch_size, seed, rank, world, done,
        )  # fmt: skip
        self.batches = size // (batch_size * world)
        if not self.batches:
            needed = f"{batch_size} images a batch" + (f" in {world} processes" if world > 1 else "")
            raise UserError(f"the training split has {size} images and a step needs {needed}: lower data.batch_size")

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = divmod(self.done(), self.batches)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        for batch in range(first, self.batches):
            start = (batch * self.world + self.rank) * self.batch_size
            yield [(epoch, int(index)) for index in order[start : start + self.batch_size]]


class EvaluationOrder(Sampler[list[Key]]):
    """Process r takes images r, r + world, ...; all make the same number of steps, the surplus ones on None."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.batch_size, self.rank, self.world = size, batch_size, rank, world

    def __len__(self) -> int:
        return -(-self.size // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[Key]]:
        mine: list[Key] = list(range(self.rank, self.size, self.world))
        mine += [None] * (-(-self.size // self.world) - len(mine))
        for step in range(len(self)):
            yield mine[step * self.batch_size : (step + 1) * self.batch_size] or [None]


def run_seed() -> int:
    """The run's seed, as ``seed_everything`` set it, in every process of the run."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def mix(*numbers: int) -> int:
    """One seed of 63 bits out of several numbers: neighbours in, unrelated seeds out."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
