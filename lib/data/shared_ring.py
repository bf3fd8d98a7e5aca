"""Loaders whose workers write pixels into memory that all processes share, again and again.

A worker's usual way to send a tensor is a new piece of shared memory each time, which the system
clears page by page, and for every tensor a file descriptor, fetched over an authenticated
connection. For images of ImageNet-C's size that costs more than decoding them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lib.data.datasets import Batch
from lib.data.samplers import Batches, Keys


class Sent(NamedTuple):
    """What a worker sends of a batch; the pixels lie in a slot of the ring."""

    slot: int
    labels: np.ndarray
    indices: np.ndarray
    flips: np.ndarray
    error: str | None


class Numbered(Sampler):
    """Batches of another sampler with the slot that each is to be written into."""

    def __init__(self, batches: Batches, slots: int) -> None:
        self.batches = batches
        self.slots = slots

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, Keys]]:
        for number, keys in enumerate(self.batches):
            yield number % self.slots, keys


class RingDataset(Dataset):
    """Writes the pixels of another dataset's batches into shared memory.

    Args:
        dataset: `ImageBatches` or `CorruptionBatches`.
        slots: how many batches the ring holds.
        largest: images in the largest batch.
    """

    def __init__(self, dataset: Any, slots: int, largest: int) -> None:
        self.dataset = dataset
        shape = (slots, largest, dataset.size, dataset.size, 3)
        self.ring = torch.empty(shape, dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, numbered: tuple[int, Keys]) -> Sent:
        slot, keys = numbered
        batch = self.dataset.__getitems__(keys)
        self.pixels(slot, len(keys)).copy_(batch.pixels)
        small = (column.numpy() for column in (batch.labels, batch.indices, batch.flips))
        return Sent(slot, *small, batch.error)

    def pixels(self, slot: int, count: int) -> torch.Tensor:
        """A batch's place in the ring, (count, 3, H, W), channels_last."""
        return self.ring[slot, :count].permute(0, 3, 1, 2)

    def received(self, sent: Sent) -> Batch:
        """The batch, in memory of its own: its slot may be written again."""
        # Copied by NumPy for the reason that `lib.data.loader.scaled` gives.
        pixels = self.pixels(sent.slot, len(sent.labels)).numpy().copy(order="K")
        small = (sent.labels, sent.indices, sent.flips)
        return Batch(*map(torch.from_numpy, (pixels, *small)), sent.error)


class RingLoader(DataLoader):
    """A loader of a `RingDataset`.

    A slot is free once its batch has been received. Ahead of that one there are never more batches
    on their way than the workers' prefetch, so that one slot more is enough.
    """

    dataset: RingDataset

    def __iter__(self) -> Iterator[Batch]:
        for sent in super().__iter__():
            yield self.dataset.received(sent)
