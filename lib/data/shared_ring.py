"""How readers send batches: into memory that all processes share, again and again, or by pipe.

A reader's usual way to send a tensor is a new piece of shared memory each time, which the system
clears page by page, and for every tensor a file descriptor, fetched over an authenticated
connection. For images of ImageNet-C's size that costs more than decoding them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from lib.data.datasets import Batch, BatchDataset
from lib.data.samplers import Batches, Keys


class Sent(NamedTuple):
    """What a reader sends of a batch: NumPy arrays, and the slot of the ring where pixels lie."""

    pixels: int | np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    flips: np.ndarray
    error: str | None

    def batch(self, pixels: torch.Tensor) -> Batch:
        labels, indices, flips = map(torch.from_numpy, (self.labels, self.indices, self.flips))
        return Batch(pixels, labels, indices, flips, self.error)


def sent(pixels: int | np.ndarray, batch: Batch) -> Sent:
    labels, indices, flips = batch.labels.numpy(), batch.indices.numpy(), batch.flips.numpy()
    return Sent(pixels, labels, indices, flips, batch.error)


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

    A slot is free once its batch has been received. Ahead of that one there are never more batches
    on their way than the readers' prefetch, so that one slot more is enough.

    Args:
        dataset: reads a batch.
        slots: how many batches the ring holds.
        largest: images in the largest batch.
    """

    def __init__(self, dataset: BatchDataset, slots: int, largest: int) -> None:
        self.dataset = dataset
        shape = (slots, largest, dataset.size, dataset.size, 3)
        self.ring = torch.empty(shape, dtype=torch.uint8).share_memory_()

    def __getitems__(self, numbered: tuple[int, Keys]) -> Sent:
        slot, keys = numbered
        batch = self.dataset.__getitems__(keys)
        self.pixels(slot, len(keys)).copy_(batch.pixels)
        return sent(slot, batch)

    def pixels(self, slot: int, count: int) -> torch.Tensor:
        """A batch's place in the ring, (count, 3, H, W), channels_last."""
        return self.ring[slot, :count].permute(0, 3, 1, 2)

    def received(self, message: Sent) -> Batch:
        """The batch, in memory of its own: its slot may be written again."""
        assert isinstance(message.pixels, int)
        # Copied by NumPy for the reason that `lib.data.to_device.scaled` gives.
        pixels = self.pixels(message.pixels, len(message.labels)).numpy().copy(order="K")
        return message.batch(torch.from_numpy(pixels))


class PipeDataset(Dataset):
    """Sends whole batches through pipes, where shared memory has no room for any."""

    def __init__(self, dataset: BatchDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: Keys) -> Sent:
        batch = self.dataset.__getitems__(keys)
        return sent(batch.pixels.permute(0, 2, 3, 1).numpy(), batch)

    def received(self, message: Sent) -> Batch:
        """The batch."""
        return message.batch(torch.from_numpy(message.pixels).permute(0, 3, 1, 2))
