"""Accuracies from counts, the precision of forward passes, and derived seeds."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def has_top5(outputs: int) -> bool:
    """Whether top-5 accuracy says anything: with five outputs or fewer every image is right."""
    return outputs > 5


def correct_in_top(logits: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Which images have their label among the k largest logits; none that has a NaN.

    A network that breaks down has not classified an image, though a NaN counts as the largest.

    Args:
        logits: (B, classes).
        labels: (B,) int64.
        k: with fewer classes than k every image counts.

    Returns:
        (B,) bool.
    """
    number = ~logits.amax(dim=1).isnan()
    if k == 1:
        return (logits.argmax(dim=1) == labels) & number
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == labels.unsqueeze(1)).any(dim=1) & number


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


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Autocast for bf16 and fp16, nothing for fp32."""
    enabled = precision != "fp32"
    return torch.autocast(device.type, dtype=AUTOCAST.get(precision), enabled=enabled)


def tf32_backends() -> tuple[Any, Any]:
    """Where PyTorch keeps whether float32 may be computed in TF32: products, convolutions."""
    return torch.backends.cuda.matmul, torch.backends.cudnn


def is_full_precision(device: torch.device, precision: str) -> bool:
    """Whether a search in this precision computes as `full_precision` does."""
    tf32 = device.type == "cuda" and any(backend.allow_tf32 for backend in tf32_backends())
    return precision == "fp32" and not tf32


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32, whose ten bits of mantissa PyTorch allows convolutions by default."""
    before = [backend.allow_tf32 for backend in tf32_backends()]
    try:
        for backend in tf32_backends():
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(tf32_backends(), before, strict=True):
            backend.allow_tf32 = allowed


def derived_seed(*parts: int) -> int:
    """A 63-bit seed that depends on all of `parts`, which are whole numbers from 0 on."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
