"""Batches of uint8 pixels: the same images, order and crops for any number of workers, processes.

Everything random is a function of (seed, epoch, image index), and every process takes every
world_size-th position of a global batch, so that a partial batch is shared out evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms

from lib.algorithm.metrics import derived_seed
from lib.data.folders import ImageTree
from lib.data.images import load_rgb
from lib.data.samplers import Keys
from utils.errors import UserError

Transform = Callable[[Image.Image], Image.Image]


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


def train_transform(crop_size: int, min_area: float = 0.08) -> Transform:
    """Random resized crop of `min_area` to all of an image's area, from torch's generator."""
    return transforms.RandomResizedCrop(crop_size, scale=(min_area, 1.0))


def eval_transform(img_size: int | None, crop_size: int) -> Transform:
    """Resize the shorter side to `img_size` and crop the centre; None and 0 crop alone."""
    crop = transforms.CenterCrop(crop_size)
    if not img_size:
        return crop
    return transforms.Compose([transforms.Resize(img_size), crop])


class BatchDataset(Dataset):
    """Reads batches of uint8 images of `size` x `size` pixels."""

    size: int

    def __getitems__(self, keys: Keys) -> Batch:
        """The images of these keys."""
        raise NotImplementedError


class ImageBatches(BatchDataset):
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
        image = load_rgb(self.tree.path(position))
        if self.seed is None:
            return self.transform(image), False
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(derived_seed(self.seed, epoch, position))
            return self.transform(image), self.flip and bool(torch.rand(()) < 0.5)


class FolderBatches(BatchDataset):
    """Batches of several folders through one loader. A key is (number of the folder, position).

    Args:
        trees: the images of each folder, with the network's labels.
        transform: image to image of `size` x `size`.
        size: side in pixels.
    """

    def __init__(self, trees: Sequence[ImageTree], transform: Transform, size: int) -> None:
        self.size = size
        self.folders = [ImageBatches(tree, transform, size) for tree in trees]

    def __getitems__(self, keys: Keys) -> Batch:
        return self.folders[keys[0][0]].__getitems__(keys)
