"""What is counted of one folder's images, and the counting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from lib.algorithm.metrics import correct_in_top, full_precision
from lib.algorithm.pool import DeviceBatch
from utils.errors import UserError

# (logits (B, classes), labels (B,), folder's name) to a (B,) bool for each column
Measure = Callable[[torch.Tensor, torch.Tensor, str], Sequence[torch.Tensor]]


def top1_and_top5(logits: torch.Tensor, labels: torch.Tensor, _: str) -> list[torch.Tensor]:
    """Whether the label is the largest output, and whether it is among the five largest."""
    return [correct_in_top(logits, labels, 1), correct_in_top(logits, labels, 5)]


@torch.no_grad()
def count_folder(
    model: nn.Module, batches: Iterable[DeviceBatch], name: str, measure: Measure
) -> list[int]:
    """One folder's columns, summed on the device: reading them is the only synchronisation.

    Raises:
        UserError: outputs that are not finite, for there any class could be called the largest.
    """
    sums: torch.Tensor | int = 0
    for images, labels, _ in batches:
        with full_precision():
            logits = model(images)
        broken = ~logits.isfinite().all(dim=1)
        columns = [*measure(logits, labels, name), torch.ones_like(broken), broken]
        sums = sums + torch.stack([column.sum() for column in columns])
    if isinstance(sums, int):  # of so few images, none is this process's
        return []
    *counts, not_finite = sums.tolist()
    if not_finite:
        raise UserError(
            f"the network's outputs are not finite on {not_finite} of {counts[-1]} images of"
            f" {name}; the checkpoint is of a training that diverged, or damaged"
        )
    return counts
