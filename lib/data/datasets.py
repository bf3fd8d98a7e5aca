"""Batches of uint8 pixels: the same images, order and crops for any number of workers, processes.

Everything random is a function of (seed, epoch, image index). Every process takes every
world_size-th position of a global batch, so that a partial batch is shared out evenly.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms

from lib.algorithm.metrics import derived_seed
from lib.data.folders import ImageTree, load_rgb
from utils.errors import UserError

Transform = Callable[[Image.Image], Image.Image]
# Of a batch: the epoch, or where nothing is random the number of the tree; positions in the tree.
Keys = tuple[int, Sequence[int]]


class Batch(NamedTuple):
    """What a loader gives."""

    pixels: torch.Tensor  # (B, 3, H, W) uint8, channels_last in memory
    labels: torch.Tensor  # (B,) int64
    indices: torch.Tensor  # (B,) int64, positions in the tree
    # Why an image could not be read; raised by the main process, because an exception of a worker
    # arrives wrapped in a traceback.
    error: str | None = None


class PipedBatch(Batch):
    """A batch that a worker sends through its pipe, as NumPy arrays; it arrives as a `Batch`."""

    def __reduce__(self) -> tuple[Any, ...]:
        # A tensor would take new shared memory each time, and a file descriptor.
        pixels, *others, error = self
        tensors = [pixels.permute(0, 2, 3, 1), *others]  # contiguous, as pickling wants it
        return batch_of_arrays, ([tensor.numpy() for tensor in tensors], error)


def batch_of_arrays(arrays: list[np.ndarray], error: str | None) -> Batch:
    pixels, labels, indices = map(torch.from_numpy, arrays)
    return Batch(pixels.permute(0, 3, 1, 2), labels, indices, error)


def train_transform(crop_size: int, min_area: float = 0.08, flip: bool = True) -> Transform:
    """Random resized crop of `min_area` to all of an image's area; half of them mirrored."""
    crop = transforms.RandomResizedCrop(crop_size, scale=(min_area, 1.0))
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(0.5 * flip)])


def eval_transform(
    img_size: int | None, crop_size: int, interpolation: str = "bilinear"
) -> Transform:
    """Resize the shorter side to `img_size` and crop the centre; None and 0 crop alone."""
    way = transforms.InterpolationMode(interpolation)
    resize = [transforms.Resize(img_size, way)] if img_size else []
    return transforms.Compose([*resize, transforms.CenterCrop(crop_size)])


class ImageBatches(Dataset):
    """Reads batches of trees, each of one; of one tree alone where the transform is random."""

    def __init__(
        self,
        trees: Sequence[ImageTree],
        transform: Transform,
        size: int,  # of an image after the transform
        seed: int | None = None,  # of the transform; None where nothing is random
    ) -> None:
        self.trees = trees
        self.transform = transform
        self.size = size
        self.seed = seed

    def __getitems__(self, keys: Keys) -> Batch:
        number, positions = keys
        # Height, width, colour as PIL has it: permuted below, that is channels_last.
        pixels = np.empty((len(positions), self.size, self.size, 3), dtype=np.uint8)
        error = None
        for row, position in enumerate(positions):
            try:
                pixels[row] = np.asarray(self.load(number, position))
            except UserError as problem:
                error = str(problem)
                break
        labels = torch.tensor([self.tree_of(number).labels[p] for p in positions])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return Batch(images, labels, torch.tensor(positions), error)

    def tree_of(self, number: int) -> ImageTree:
        return self.trees[number if self.seed is None else 0]

    def load(self, number: int, position: int) -> Image.Image:
        """One image after its transform."""
        image = load_rgb(self.tree_of(number).path(position))
        if self.seed is None:
            return self.transform(image)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(derived_seed(self.seed, number, position))
            return self.transform(image)


class DistributedBatchSampler:
    """Training: this process's share of each global batch of an epoch, from batch `start` on."""

    def __init__(
        self,
        total: int,
        batch_size: int,  # of a global batch; the last one may be smaller
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,  # of the order, a new one each epoch
    ) -> None:
        self.total = total
        self.batch_size = batch_size
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

    def __iter__(self) -> Iterator[Keys]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
        order = torch.randperm(self.total, generator=generator).tolist()
        for batch in range(self.start, self.batches_per_epoch()):
            whole = order[batch * self.batch_size :][: self.batch_size]
            yield epoch, whole[self.rank :: self.world_size] or whole[:1]  # padding, of weight 0


def share_in_batches(
    positions: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1
) -> list[Sequence[int]]:
    """Evaluation: every world_size-th position, this process's exact share, in batches."""
    share = positions[rank::world_size]
    return [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
