"""Samplers: which images make up which batch.

They are stateless. Batch b of process r is a function of (seed, b, r), the augmentation of an image of (seed, epoch, index):
so a resumed run has the same batches as an uninterrupted one, whatever the number of workers.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler

from dilated_seg.errors import UserError

Key = tuple[int, int] | int | None  # (epoch, index) in training; index, or None for an all-ignored image, in evaluation


class TrainingOrder(Sampler[list[Key]]):
    """Batches of (epoch, index): each epoch a new permutation, without its last incomplete batch.

    Args:
        size: Number of images in the split.
        batch_size: Images per process.
        seed: The seed of the run.
        rank: The rank of this process; the processes share one permutation.
        world: Number of processes.
        done: Returns the number of batches that the run has trained on; iteration starts after them.
        passes: Batches whose gradients are accumulated for one step; an epoch has only complete steps.
        permute: Returns the order of all images from (seed, epoch, batch_size, world).
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        done: Callable[[], int] = int,
        passes: int = 1,
        permute: Callable[[int, int, int, int], np.ndarray] | None = None,
    ) -> None:
        self.batch_size, self.seed, self.rank, self.world, self.done = batch_size, seed, rank, world, done
        self.permute = permute or (lambda seed, epoch, *_: np.random.default_rng([seed, epoch]).permutation(size))
        self.batches = size // (batch_size * world * passes) * passes
        if not size:
            raise UserError("the training split has no images: check its list or directory")
        if not self.batches:
            needed = f"{batch_size} images a batch" + (f" in {world} processes" if world > 1 else "")
            needed += f" {passes} times over" if passes > 1 else ""
            raise UserError(f"the training split has {size} images and a step needs {needed}: lower the batch size of data")

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = divmod(self.done(), self.batches)
        order = self.permute(self.seed, epoch, self.batch_size, self.world)
        for batch in range(first, self.batches):
            start = (batch * self.world + self.rank) * self.batch_size
            yield [(epoch, int(index)) for index in order[start : start + self.batch_size]]


class EvaluationOrder(Sampler[list[Key]]):
    """Process r evaluates images r, r + world, ...; all have the same number of batches, padded with None."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.batch_size, self.rank, self.world = size, batch_size, rank, world

    def __len__(self) -> int:
        return -(-self.size // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[Key]]:
        keys: list[Key] = list(range(self.rank, self.size, self.world))
        keys += [None] * (-(-self.size // self.world) - len(keys))
        for step in range(len(self)):
            yield keys[step * self.batch_size : (step + 1) * self.batch_size] or [None]


LANES = 8  # queues of row groups per process, if there are enough groups
WINDOW = 4  # consecutive row groups of a queue whose images are shuffled together
CACHED_GROUPS = 3 * LANES * WINDOW // 2  # row groups in memory per process: 1.5 times those that a worker reads at a time


def order_by_row_groups(
    sizes: Sequence[int], seed: int, epoch: int, batch_size: int, world: int, limit: int = CACHED_GROUPS
) -> np.ndarray:
    """Return an order of an epoch's images for streamed data, in which the images of a row group are close together.

    The groups are shuffled and each is appended to the shortest queue; in a queue, images are shuffled within WINDOW
    consecutive groups. Batch b of process r comes from queue ``(b * world + r) % queues``, so each process has its own queues.
    One of n workers loads every n-th batch, so with 1, 2, 4 or 8 workers each has its own queues too, and hardly any group is
    read twice. Batches are the same with another number of workers, but several of them read the same groups. A split of at
    most ``limit`` groups is shuffled completely. With one process, two queues and batches of 2::

        row groups        {0 1 2} {3 4 5} {6 7 8} {9 10 11}
        queue 0           2 7 0 6 8 1          queue 1           11 3 9 5 10 4
        batches           [2 7] [11 3] [0 6] [9 5] [8 1] [10 4]

    Args:
        sizes: Number of images in each row group, in the order of the split.
        seed: The seed of the run.
        epoch: Counts from 0.
        batch_size: Images of one process in one step.
        world: Number of processes.
        limit: Row groups in memory per process; below ``CACHED_GROUPS`` there are fewer queues and shorter windows.
    """
    random = np.random.default_rng([seed, epoch])
    starts = np.cumsum([0, *sizes])
    if len(sizes) <= limit:
        return random.permutation(int(starts[-1]))
    window = next((n for n in (WINDOW, WINDOW // 2) if 3 * n // 2 <= limit), 1)
    fitting = (n for n in (LANES, LANES // 2, LANES // 4) if n * world * window <= len(sizes) and 3 * n * window // 2 <= limit)
    lanes = next(fitting, 1)
    queues: list[list[np.ndarray]] = [[] for _ in range(lanes * world)]
    lengths = np.zeros(len(queues), np.int64)
    for group in random.permutation(len(sizes)):
        queue = int(lengths.argmin())
        queues[queue].append(np.arange(starts[group], starts[group + 1]))
        lengths[queue] += sizes[group]
    batches, ends = [], []
    for queue_groups in queues:
        windows = [queue_groups[i : i + window] for i in range(0, len(queue_groups), window)]
        images = np.concatenate([random.permutation(np.concatenate(w)) for w in windows] or [np.zeros(0, np.int64)])
        full = len(images) // batch_size * batch_size
        batches.append(images[:full].reshape(-1, batch_size))
        ends.append(images[full:])
    rounds = min(len(queue) for queue in batches)
    aligned = [queue[step] for step in range(rounds) for queue in batches]
    return np.concatenate([*aligned, *(queue[rounds:].ravel() for queue in batches), *ends]).astype(np.int64)


def get_run_seed() -> int:
    """Return the run's seed, which ``seed_everything`` sets for every process of the run."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


@contextmanager
def fix_seed(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block, and restore its state afterwards.

    Not torch.manual_seed, which is slow without a GPU: it formats the call stack for a possible error of CUDA.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def mix_seeds(*numbers: int) -> int:
    """Return a seed of 63 bits from several integers; similar ones give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
