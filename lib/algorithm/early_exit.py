"""Images on their way through an attack: queued, under attack, ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lib.algorithm.batch import DeviceBatch


class Outcome(NamedTuple):
    """Images whose attack has ended.

    Attributes:
        indices: (B,) int64, positions in the tree.
        robust: (B,) bool, top-1 right wherever the protocol looks.
        robust5: (B,) bool, the same of top-5. Under `standard` the attack stops once top-1 has
            fallen, so this is an upper bound there.
        predictions: (B,) int64, of the image that ended the attack.
        no_gradient: (B,) bool, the first step's gradient was zero in every pixel.
        adversarial: (B, 3, H, W), the image that ended the attack.
    """

    indices: torch.Tensor
    robust: torch.Tensor
    robust5: torch.Tensor
    predictions: torch.Tensor
    no_gradient: torch.Tensor
    adversarial: torch.Tensor


def worst_per_image(one: Outcome, other: Outcome) -> Outcome:
    """Of two restarts, each image's worse: a fallen one stays, else the later one counts."""
    keep = ~one.robust
    return Outcome(
        one.indices,
        one.robust & other.robust,
        one.robust5 & other.robust5,
        torch.where(keep, one.predictions, other.predictions),
        one.no_gradient,
        torch.where(keep.view(-1, 1, 1, 1), one.adversarial, other.adversarial),
    )


@dataclass(frozen=True)
class Pool:
    """Images under attack; every field has one row an image."""

    images: torch.Tensor  # the clean ones
    adversarial: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    step: torch.Tensor
    restart: torch.Tensor
    right5: torch.Tensor
    no_gradient: torch.Tensor

    @staticmethod
    def empty() -> Pool:
        """No images."""
        return Pool(*(torch.empty(0) for _ in range(8)))

    def fields(self) -> list[torch.Tensor]:
        """All tensors, in order."""
        return list(vars(self).values())

    def select(self, rows: torch.Tensor) -> Pool:
        """Only some rows."""
        return Pool(*(field[rows] for field in self.fields()))

    def join(self, other: Pool) -> Pool:
        """These rows and those."""
        if not len(other.labels):
            return self
        return Pool(*(torch.cat(pair) for pair in zip(self.fields(), other.fields(), strict=True)))

    def outcome(
        self, ended: torch.Tensor, right: torch.Tensor, predictions: torch.Tensor
    ) -> Outcome:
        """What became of the rows that have ended."""
        return Outcome(
            self.indices[ended],
            right[ended],
            self.right5[ended],
            predictions[ended],
            self.no_gradient[ended],
            self.adversarial[ended],
        )


class Queue:
    """Hands out images of batches in portions of any size."""

    def __init__(self, batches: Iterable[DeviceBatch]) -> None:
        self.batches = iter(batches)
        self.held: DeviceBatch | None = None

    def take(self, wanted: int) -> DeviceBatch | None:
        """Up to `wanted` images, fewer only when no more are left; None for none."""
        parts: list[DeviceBatch] = []
        while wanted > 0:
            batch = self.held or next(self.batches, None)
            if batch is None:
                break
            parts.append(DeviceBatch(*(field[:wanted] for field in batch)))
            rest = DeviceBatch(*(field[wanted:] for field in batch))
            self.held = rest if len(rest.labels) else None
            wanted -= len(parts[-1].labels)
        if not parts:
            return None
        return DeviceBatch(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
