"""Which images are read together: the same order for any number of workers and processes.

Every process takes every world_size-th position of a global batch, so that a partial batch is
shared out evenly.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from lib.algorithm.metrics import derived_seed

Keys = list[tuple[int, int]]  # of a batch: (epoch or number of the folder, position in the tree)


class DistributedBatchSampler(Sampler[Keys]):
    """Training: this process's share of each global batch of an epoch, from batch `start` on."""

    def __init__(
        self,
        total: int,
        batch_size: int,  # of a global batch; the last one may be smaller
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,  # of the order, a new one each epoch; None keeps the tree's
    ) -> None:
        self.total = total
        self.batch_size = batch_size
        self.largest = -(-min(batch_size, total) // world_size)
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch and the batch to begin with."""
        self.epoch = epoch
        self.start = start

    def batches_per_epoch(self) -> int:
        """Global batches in a whole epoch."""
        return -(-self.total // self.batch_size)

    def positions(self) -> range:
        """Of this process's images in a whole global batch."""
        return range(self.rank, self.batch_size, self.world_size)

    def weight(self, batch: int) -> float:
        """The factor on this process's mean loss that makes an average over processes the mean
        over the global batch; 0 for padding.
        """
        total = min(self.batch_size, self.total - batch * self.batch_size)  # over all processes
        return len(range(self.rank, total, self.world_size)) * self.world_size / total

    def __len__(self) -> int:
        return self.batches_per_epoch() - self.start

    def __iter__(self) -> Iterator[Keys]:
        epoch, order = self.epoch, list(range(self.total))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            order = torch.randperm(self.total, generator=generator).tolist()
        for batch in range(self.start, self.batches_per_epoch()):
            whole = order[batch * self.batch_size :][: self.batch_size]
            share = whole[self.rank :: self.world_size] or whole[:1]  # padding, of weight 0
            yield [(epoch, position) for position in share]


class EvaluationSampler(Sampler[Keys]):
    """Evaluation: the batches given, each a folder's number and positions in it."""

    def __init__(self, batches: Sequence[tuple[int, Sequence[int]]]) -> None:
        self.batches = batches
        self.largest = max((len(positions) for _, positions in batches), default=0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Keys]:
        for folder, positions in self.batches:
            yield [(folder, position) for position in positions]


def share_in_batches(
    positions: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1
) -> list[Sequence[int]]:
    """Every world_size-th position, this process's exact share, in batches."""
    share = positions[rank::world_size]
    return [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
