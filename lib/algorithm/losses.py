"""The training loss with its angular margin, and the losses that attacks ascend."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from lib.algorithm.protocols import LOSS_NAMES
from utils.errors import UserError

# (logits (B, classes), labels (B,)) to one loss an image, (B,)
PerImageLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def margin_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    scaled_margin: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy after the true logit gives up a margin (arXiv:2002.08619, Eq. 6).

    With HE, logits = s * c and scaled_margin = s * m, so this is
    cross_entropy(s * (c - m * onehot(y)), y). Low-precision logits are brought to float32.

    Args:
        logits: (B, classes).
        labels: (B,) int64.
        scaled_margin: what is taken off the true logit; 0 is plain cross-entropy.
        label_smoothing: share of the target that goes to all classes alike.
        reduction: `mean`, or `none` for one value an image.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if scaled_margin:
        taken = torch.zeros_like(logits).scatter_(1, labels.unsqueeze(1), scaled_margin)
        logits = logits - taken
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction=reduction)


def ce_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each image, (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Largest other logit minus the true one, (B,); positive once misclassified.

    Carlini & Wagner 2017, arXiv:1608.04644, f6 without its threshold.
    """
    true = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    return others.amax(dim=1) - true


def dlr_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Difference of logits ratio, (B,): the margin over the gap of the first to the third logit.

    Croce & Hein 2020, arXiv:2003.01690, Eq. 6. It does not change when logits are scaled.

    Raises:
        UserError: fewer than 3 classes.
    """
    if logits.shape[1] < 3:
        raise UserError(
            f"the dlr loss compares three classes and there are {logits.shape[1]}; use margin"
        )
    top = logits.topk(3, dim=1).values
    return margin_loss(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


ATTACK_LOSS: dict[str, PerImageLoss] = dict(
    zip(LOSS_NAMES, (ce_loss, margin_loss, dlr_loss), strict=True)
)
