"""ImageNet-C as one dataset over all folders, and each process's exact batches of it."""

from __future__ import annotations

import bisect
import itertools
import operator
import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

import torch
from torch.utils.data import Dataset, Sampler

from lib.data.datasets import Batch, ImageBatches, Transform
from lib.data.samplers import Keys
from lib.imagenet_c.corruptions import SEVERITIES
from lib.imagenet_c.tree import CorruptionTree


class CorruptionBatches(Dataset):
    """One dataset over all folders. A key is (group number, position in the group's images).

    Batches carry group numbers as their `indices`.

    Args:
        tree: the images, with the network's labels.
        transform: image to image of `size` x `size`.
        size: side in pixels.
    """

    def __init__(self, tree: CorruptionTree, transform: Transform, size: int) -> None:
        roots = [
            (t, os.path.join(t.root, str(s))) for t in tree.images.values() for s in SEVERITIES
        ]
        self.size = size
        self.groups = [ImageBatches(replace(t, root=root), transform, size) for t, root in roots]

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def __getitems__(self, keys: Keys) -> Batch:
        runs = itertools.groupby(keys, key=operator.itemgetter(0))
        parts = [self.read(group, [position for _, position in run]) for group, run in runs]
        if len(parts) == 1:
            return parts[0]
        *columns, errors = zip(*parts, strict=True)
        return Batch(*map(torch.cat, columns), next(filter(None, errors), None))

    def read(self, group: int, positions: list[int]) -> Batch:
        """Images of one group."""
        batch = self.groups[group].__getitems__([(0, position) for position in positions])
        return batch._replace(indices=torch.full_like(batch.indices, group))


class GroupPlan(Sampler):
    """This process's batches over all groups, one group after the other: exact and repeatable.

    Of every group it takes images rank, rank + world_size, ..., and cuts what that gives into
    full batches that may reach over the end of a group. A batch depends on the tree, the batch
    size and the number of processes alone, never on where a run was interrupted: so resuming
    gives every image the same neighbours, and the arithmetic the same rounding.

    Args:
        sizes: number of images of every group.
        batch_size: images in a batch of this process.
        rank: this process.
        world_size: number of processes.
        done: groups that need no evaluation; batches of these alone are left out.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        done: Container[int] = (),
    ) -> None:
        self.batch_size = self.largest = batch_size
        self.rank = rank
        self.world_size = world_size
        shares = [len(range(rank, size, world_size)) for size in sizes]
        self.ends = list(itertools.accumulate(shares))
        self.batches = list(
            dict.fromkeys(
                batch
                for group, (share, end) in enumerate(zip(shares, self.ends, strict=True))
                if share and group not in done
                for batch in range((end - share) // batch_size, (end - 1) // batch_size + 1)
            )
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Keys]:
        for batch in self.batches:
            last = min((batch + 1) * self.batch_size, self.ends[-1])
            yield [self.key(place) for place in range(batch * self.batch_size, last)]

    def key(self, place: int) -> tuple[int, int]:
        """(group, position in the group) of this process's image number `place`."""
        group = bisect.bisect_right(self.ends, place)
        start = self.ends[group - 1] if group else 0
        return group, self.rank + self.world_size * (place - start)

    def finished_with(self, batch: int) -> int:
        """How many groups are through, counted from the first, once this batch is."""
        return bisect.bisect_right(self.ends, (batch + 1) * self.batch_size)
