"""Images under attack: batches, outcomes, and the pool that keeps a batch full.

An image that has ended makes room for the next at once, so that the cost of an evaluation follows
the robust accuracy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lib.algorithm.metrics import correct_in_top


class DeviceBatch(NamedTuple):
    """A batch on its device: images (B, 3, H, W) in [0, 1], labels and indices (B,)."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


class Outcome(NamedTuple):
    """Images whose attack has ended.

    Attributes:
        indices: (B,) int64, positions in the tree.
        robust: (B,) bool, top-1 right wherever the protocol looks.
        stages_survived: (B,) int64, of the attack's stages; PGD is one.
        robust5: (B,) bool, the same of top-5. Under `standard` the attack stops at the first
            misclassified iterate, so this is an upper bound there.
        predictions: (B,) int64, of the image that ended the attack.
        no_gradient: (B,) bool, the first step's gradient was zero in every pixel.
        adversarial: (B, 3, H, W), the image that ended the attack.
    """

    indices: torch.Tensor
    robust: torch.Tensor
    stages_survived: torch.Tensor
    robust5: torch.Tensor
    predictions: torch.Tensor
    no_gradient: torch.Tensor
    adversarial: torch.Tensor


def judge(
    indices: torch.Tensor,
    labels: torch.Tensor,
    logits: torch.Tensor,
    no_gradient: torch.Tensor,
    adversarial: torch.Tensor,
) -> Outcome:
    """What became of images, by the logits of those that ended their attack."""
    robust, robust5 = (correct_in_top(logits, labels, k) for k in (1, 5))
    predictions = logits.argmax(1)
    return Outcome(indices, robust, robust.long(), robust5, predictions, no_gradient, adversarial)


def worst_per_image(one: Outcome, other: Outcome) -> Outcome:
    """Of two restarts, each image's worse: the first that is misclassified, else the later one."""
    keep = ~one.robust
    return Outcome(
        one.indices,
        one.robust & other.robust,
        one.stages_survived & other.stages_survived,
        one.robust5 & other.robust5,
        torch.where(keep, one.predictions, other.predictions),
        one.no_gradient,
        torch.where(keep.view(-1, 1, 1, 1), one.adversarial, other.adversarial),
    )


@dataclass(frozen=True)
class Pool:
    """Images under attack; every field has one row an image.

    Attributes:
        images: the clean ones.
        iterate: number of the iterate, counted over all restarts.
        no_gradient: the first step's gradient was zero in every pixel.
    """

    images: torch.Tensor
    adversarial: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    iterate: torch.Tensor
    no_gradient: torch.Tensor

    def select(self, rows: torch.Tensor) -> "Pool":
        """Only some rows, by their numbers."""
        return Pool(*(field[rows] for field in vars(self).values()))

    def join(self, other: "Pool") -> "Pool":
        """These rows and those."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Pool(*(torch.cat(pair) for pair in pairs))


class Queue:
    """Hands out images of batches in portions of any size."""

    def __init__(self, batches: Iterator[DeviceBatch]) -> None:
        self.batches = batches
        self.held: DeviceBatch | None = None  # what is left of a batch

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


def sort_rows(ended: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Numbers of the rows that have ended, that begin another restart, that have not ended.

    Two counts come to the CPU, the only synchronisation of a step.
    """
    order = torch.where(ended, 0, torch.where(last, 1, 2)).argsort(stable=True)
    n_ended, n_restarting = torch.stack([ended, last & ~ended]).sum(dim=1).tolist()
    return order[:n_ended], order[n_ended : n_ended + n_restarting], order[n_ended:]


def is_zero(gradient: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) to (B,): the gradient vanishes in every pixel."""
    return gradient.flatten(1).abs().amax(dim=1) == 0
