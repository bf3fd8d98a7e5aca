"""Arithmetic of forward passes: fp32, bf16 or fp16 by autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def precision_context(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast for bf16 and fp16, nothing for fp32."""
    enabled = precision != "fp32"
    return torch.autocast(device.type, dtype=AUTOCAST.get(precision), enabled=enabled)
