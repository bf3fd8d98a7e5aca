"""What training and attacks take, and what attacks return."""

from __future__ import annotations

from typing import NamedTuple

import torch


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
