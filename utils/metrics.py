"""Counts to accuracies. Sums first, one division at the end."""

from __future__ import annotations

import math
from typing import Any

import torch

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson_interval(correct: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval for a binomial proportion, as fractions in [0, 1].

    Wilson, E. B. (1927), JASA 22. Unlike the normal approximation it stays inside [0, 1] and
    keeps its coverage near 0 and 1. With n = 0 nothing is known: (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    p = correct / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the exact value is 0 or 1; rounding must not push it past the proportion.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == n else (centre + half) / scale
    return low, high


def accuracy_entry(correct: int, n: int) -> dict[str, Any]:
    """What result files hold of one accuracy: the counts, the fraction, its 95 % interval."""
    accuracy = correct / n if n else 0.0
    interval = list(wilson_interval(correct, n))
    return {"correct": int(correct), "n": int(n), "accuracy": accuracy, "interval95": interval}


def correct_in_top(logits: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Which images have their label among the k largest logits.

    Args:
        logits: (B, classes).
        labels: (B,) int64.
        k: with fewer classes than k every image counts.

    Returns:
        (B,) bool.
    """
    if k == 1:
        return logits.argmax(dim=1) == labels
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == labels.unsqueeze(1)).any(dim=1)


class MetricSums:
    """Sums of loss, top-1 and top-5 over images, kept on the device until they are read.

    `update` never synchronises; `totals` does.
    """

    def __init__(self, device: torch.device | str, values: list[float] | None = None) -> None:
        # float32 loses count at 2**24 images, float64 does not exist on MPS: int64 for the counts.
        wide = torch.float32 if torch.device(device).type == "mps" else torch.float64
        values = values or [0.0, 0, 0, 0]
        self.loss = torch.tensor(values[0], dtype=wide, device=device)
        self.counts = torch.tensor([int(v) for v in values[1:]], device=device)

    def update(
        self, mean_loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, n: int
    ) -> None:
        """Add a batch of n images with this mean loss and these logits (n, classes)."""
        logits = logits.detach()
        self.loss += mean_loss.detach().to(self.loss.dtype) * n
        top1 = correct_in_top(logits, labels, 1).sum()
        top5 = correct_in_top(logits, labels, 5).sum()
        self.counts += torch.stack([top1, top5, torch.full_like(top1, n)])

    def totals(self) -> list[float]:
        """[sum of losses, top-1 right, top-5 right, images], as Python numbers."""
        return [self.loss.item(), *self.counts.tolist()]


def averages(totals: list[float]) -> dict[str, float]:
    """Mean loss and accuracies in percent from `MetricSums.totals`, added up over processes."""
    loss, top1, top5, n = totals
    n = max(n, 1)
    return {"loss": loss / n, "top1": 100 * top1 / n, "top5": 100 * top5 / n}
