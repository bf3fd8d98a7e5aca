"""What training and attacks take: images, labels, and which images they are."""

from __future__ import annotations

from typing import NamedTuple

import torch


class DeviceBatch(NamedTuple):
    """A batch where it is worked on: images (B, 3, H, W) in [0, 1], labels and indices (B,)."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
