"""Arithmetic of forward passes: autocast for training and search, full precision to judge by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
