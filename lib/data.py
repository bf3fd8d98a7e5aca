"""Batches of uint8 pixels: the same images, order and crops for any number of workers, processes.

Everything random is a function of (seed, epoch, image index), and every process takes every
world_size-th position of a global batch, so that a partial batch is shared out evenly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler
from torchvision import transforms

from lib.image_folder import ImageTree, load_rgb
from utils.errors import UserError

Transform = Callable[[Image.Image], Image.Image]
Keys = list[tuple[int, int]]  # of a batch; what the numbers mean is the dataset's matter


class Batch(NamedTuple):
    """What a loader gives.

    Attributes:
        pixels: (B, 3, H, W) uint8, channels_last in memory.
        labels: (B,) int64.
        indices: (B,) int64, positions in the tree.
        flips: (B,) bool, which images are to be mirrored; done on the device.
        error: why an image could not be read; the process that trains raises it, because a
            message that a worker raises arrives wrapped in a traceback.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    flips: torch.Tensor
    error: str | None = None


class DeviceBatch(NamedTuple):
    """A batch where it is worked on: images (B, 3, H, W) in [0, 1], labels and indices (B,)."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


def derived_seed(*parts: int) -> int:
    """A 63-bit seed that depends on all of `parts`, which are whole numbers from 0 on."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def train_transform(crop_size: int, min_area: float = 0.08) -> Transform:
    """Random resized crop of `min_area` to all of an image's area, from torch's generator."""
    return transforms.RandomResizedCrop(crop_size, scale=(min_area, 1.0))


def eval_transform(img_size: int | None, crop_size: int) -> Transform:
    """Resize the shorter side to `img_size` and crop the centre; None crops alone."""
    crop = transforms.CenterCrop(crop_size)
    if img_size is None:
        return crop
    return transforms.Compose([transforms.Resize(img_size), crop])


class ImageBatches(Dataset):
    """Reads batches. A key is (epoch, position in the tree); the epoch seeds the crop.

    Args:
        tree: the images.
        transform: image to image of `size` x `size`.
        size: side in pixels.
        seed: of the crops and flips, or None where nothing is random.
        flip: mirror half of the images, where there is a seed.
    """

    def __init__(
        self,
        tree: ImageTree,
        transform: Transform,
        size: int,
        seed: int | None = None,
        flip: bool = True,
    ) -> None:
        self.tree = tree
        self.transform = transform
        self.size = size
        self.seed = seed
        self.flip = flip

    def __len__(self) -> int:
        return len(self.tree.files)

    def __getitems__(self, keys: Keys) -> Batch:
        positions = [position for _, position in keys]
        # Height, width, colour as PIL has it: permuted below, that is channels_last.
        pixels = torch.empty((len(keys), self.size, self.size, 3), dtype=torch.uint8)
        flips = torch.zeros(len(keys), dtype=torch.bool)
        error = None
        for row, (epoch, position) in enumerate(keys):
            try:
                image, flips[row] = self.load(epoch, position)
            except UserError as problem:
                error = str(problem)
                break
            pixels[row] = torch.from_numpy(np.array(image))
        labels = torch.tensor([self.tree.labels[p] for p in positions])
        return Batch(pixels.permute(0, 3, 1, 2), labels, torch.tensor(positions), flips, error)

    def load(self, epoch: int, position: int) -> tuple[Image.Image, bool]:
        """One image after its transform, and whether it is to be mirrored."""
        image = load_rgb(os.path.join(self.tree.root, self.tree.files[position]))
        if self.seed is None:
            return self.transform(image), False
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(derived_seed(self.seed, epoch, position))
            return self.transform(image), self.flip and bool(torch.rand(()) < 0.5)


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
        self.largest = -(-batch_size // world_size)
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
        self.batch_size = self.largest = batch_size

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch_size)

    def __iter__(self) -> Iterator[Keys]:
        for start in range(0, len(self.positions), self.batch_size):
            yield [(0, position) for position in self.positions[start : start + self.batch_size]]


class Chunks(Sampler):
    """Batches whose images are given, for work whose outcome depends on who shares a batch."""

    def __init__(self, chunks: list[list[int]]) -> None:
        self.chunks = chunks
        self.largest = max(map(len, chunks), default=0)

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Keys]:
        yield from ([(0, position) for position in chunk] for chunk in self.chunks)


def to_device(
    batch: Batch, device: torch.device, dtype: torch.dtype = torch.float32
) -> DeviceBatch:
    """Send a batch as bytes; mirror and scale to [0, 1] there.

    Raises:
        UserError: an image of it could not be read.
    """
    if batch.error is not None:
        raise UserError(batch.error)
    send = {"device": device, "non_blocking": True}
    pixels, flips = batch.pixels.to(**send), batch.flips.to(**send)
    if batch.flips.any():  # read on the host: no synchronisation
        pixels = torch.where(flips.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    images = scaled(pixels, dtype).contiguous(memory_format=torch.channels_last)
    return DeviceBatch(images, batch.labels.to(**send), batch.indices.to(**send))


def scaled(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes as numbers in [0, 1]."""
    if pixels.device.type != "cpu":
        return pixels.to(dtype).div_(255)
    # NumPy does it in this thread alone. After a parallel loop of PyTorch's, OpenMP's threads wait
    # for the next one by spinning, for longer than a batch takes, on cores that the readers need.
    result = torch.empty_like(pixels, dtype=dtype)
    values = result.numpy()
    np.divide(pixels.numpy(), 255, out=values, dtype=values.dtype)
    return result


def on_device(
    loader: Iterable[Batch], device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[DeviceBatch]:
    """The loader's batches on the device; on CUDA the next one is copied during the work."""
    if device.type != "cuda":
        yield from (to_device(batch, device, dtype) for batch in loader)
        return
    stream = torch.cuda.Stream(device)
    pending: tuple[DeviceBatch, torch.cuda.Event] | None = None
    for batch in loader:
        with torch.cuda.stream(stream):
            copied = to_device(batch, device, dtype)
            done = stream.record_event()
        if pending is not None:
            yield arrived(*pending)
        pending = copied, done
    if pending is not None:
        yield arrived(*pending)


def arrived(batch: DeviceBatch, done: torch.cuda.Event) -> DeviceBatch:
    """Make the working stream wait for a copy, and keep its memory until both are through."""
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(done)
    for tensor in batch:
        tensor.record_stream(current)
    return batch


def share_of_workers(workers: int, world_size: int) -> int:
    """Reading processes of each of `world_size` processes: at least one if there are any.

    More than the machine has cores would only get in each other's way.
    """
    cores = os.cpu_count() or 1
    return max(1, min(workers, cores) // world_size) if workers else 0
