"""Which images are read together: the same order for any number of workers and processes.

Every process takes every world_size-th position of a global batch, so that a partial batch is
shared out evenly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch.utils.data import Sampler

from lib.algorithm.metrics import derived_seed

Keys = list[tuple[int, int]]  # of a batch; what the numbers mean is the dataset's matter


class GlobalBatches(Sampler):
    """This process's share of each global batch of an epoch, from batch `start` on.

    A share is never empty: where a last batch has fewer images than there are processes, the
    others get its first image, which training then weighs with zero.

    Args:
        total: images in an epoch.
        batch_size: images in a global batch; the last one may be smaller.
        rank: this process.
        world_size: number of processes.
        seed: of the order, a new one each epoch; None keeps the tree's order.
    """

    def __init__(
        self,
        total: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
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

    def images_in(self, batch: int) -> int:
        """Images of a global batch, over all processes."""
        return min(self.batch_size, self.total - batch * self.batch_size)

    def positions(self) -> range:
        """Of this process's images in a whole global batch."""
        return range(self.rank, self.batch_size, self.world_size)

    def weight(self, batch: int) -> float:
        """The factor on this process's mean loss that makes an average over processes the mean
        over the global batch; 0 for a borrowed image.
        """
        total = self.images_in(batch)
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
            share = whole[self.rank :: self.world_size] or whole[:1]
            yield [(epoch, position) for position in share]


class Shard(Sampler):
    """Every world_size-th image of a tree in its order, once: evaluation's exact share.

    Args:
        positions: the images still to do, over all processes.
        batch_size: images in a batch of this process.
    """

    def __init__(
        self, positions: Iterable[int], batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.positions = list(positions)[rank::world_size]
        self.batch_size = batch_size
        self.largest = min(batch_size, len(self.positions))

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch_size)

    def __iter__(self) -> Iterator[Keys]:
        for start in range(0, len(self.positions), self.batch_size):
            yield [(0, position) for position in self.positions[start : start + self.batch_size]]


class FolderShards(Sampler):
    """This process's share of several folders, one after the other; no batch has two of them.

    A key is (number of the folder, position). A batch depends on the folders, the batch size and
    the number of processes alone, never on where a run was interrupted: so resuming gives every
    image the same neighbours, and the arithmetic the same rounding.

    Args:
        sizes: number of images of each folder to do, by its number.
        batch_size: images in a batch of this process.
    """

    def __init__(
        self, sizes: Mapping[int, int], batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.shards = {
            folder: Shard(range(size), batch_size, rank, world_size)
            for folder, size in sizes.items()
        }
        self.largest = max((shard.largest for shard in self.shards.values()), default=0)

    def __len__(self) -> int:
        return sum(map(len, self.shards.values()))

    def __iter__(self) -> Iterator[Keys]:
        for folder, shard in self.shards.items():
            yield from ([(folder, position) for _, position in keys] for keys in shard)


class Chunks(Sampler):
    """Batches whose images are given, for work whose outcome depends on who shares a batch."""

    def __init__(self, chunks: list[list[int]]) -> None:
        self.chunks = chunks
        self.largest = max(map(len, chunks), default=0)

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Keys]:
        yield from ([(0, position) for position in chunk] for chunk in self.chunks)


class Batches(Protocol):
    """A sampler of batches that knows the largest one."""

    largest: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Keys]: ...
