"""Random starts of PGD, drawn by threads while the device works on the images before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.norms import Norm
from lib.algorithm.pgd import random_start

MOST_THREADS = 8


class RandomStarts:
    """Starts for batches of images; each is `random_start` of its image, whoever draws it.

    Args:
        eps: radius of the ball.
        seed: of the evaluation.
        norm: of the ball.
    """

    def __init__(self, eps: float, seed: int, norm: Norm) -> None:
        self.eps, self.seed, self.norm = eps, seed, norm
        self.threads = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))
        self.drawn: dict[tuple[int, int], Future[torch.Tensor]] = {}

    def drawn_ahead(self, batches: Iterable[DeviceBatch]) -> Iterator[DeviceBatch]:
        """Pass batches on, each once the first starts of the next one are being drawn."""
        held: DeviceBatch | None = None
        for batch in batches:
            shape = batch.images.shape[1:]
            for index in batch.indices.tolist():
                self.drawn[index, 0] = self.draw(index, 0, shape)
            if held is not None:
                yield held
            held = batch
        if held is not None:
            yield held

    def draw(self, index: int, restart: int, shape: torch.Size) -> Future[torch.Tensor]:
        """One start, in the making."""
        return self.threads.submit(
            random_start, index, shape, self.eps, self.seed, restart, self.norm
        )

    def __call__(
        self, images: torch.Tensor, indices: torch.Tensor, restart: torch.Tensor | int
    ) -> torch.Tensor:
        """Points of the ball around 0, (B, 3, H, W), on the images' device.

        Args:
            images: (B, 3, H, W).
            indices: (B,).
            restart: its number, one for each image or one for all.
        """
        numbers = torch.zeros_like(indices) + restart
        starts = []
        for index, number in torch.stack([indices, numbers], dim=1).tolist():
            ahead = self.drawn.pop((index, number), None)
            starts.append(ahead or self.draw(index, number, images.shape[1:]))
        noise = torch.empty(images.shape, pin_memory=images.is_cuda)
        torch.stack([start.result() for start in starts], out=noise)
        return noise.to(images, non_blocking=True, memory_format=torch.preserve_format)
