"""Images on which a network breaks down while a package, which does not notice, attacks it."""

from __future__ import annotations

import torch

from lib.algorithm.norms import NORMS
from lib.algorithm.protocols import ThreatModel

ROUNDING = 1e-6  # of a float32 pixel in [0, 1]; and of a radius, relatively


def in_ball(change: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    """Whether changes (B, 3, H, W) are no longer than the radius, (B,)."""
    distance, eps = NORMS[threat.norm].length(change).flatten(), threat.eps
    return distance <= eps + ROUNDING * max(1, eps)


class Breakdowns:
    """Watches the attacked network's outputs for NaN.

    To a package that compares the largest output with the label, an image of class 0 whose outputs
    are NaN is robust, since a NaN counts as the largest; `correct_in_top` does not count it right.

    Args:
        x: (B, 3, H, W) float32, the images attacked.
        threat: ball and norm.
    """

    def __init__(self, x: torch.Tensor, threat: ThreatModel) -> None:
        self.x, self.threat = x, threat
        self.images = x.clone()
        self.seen = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def watch(self, images: torch.Tensor, logits: torch.Tensor) -> None:
        """Keep each image with a NaN for every `x` in whose ball it lies."""
        images, broken = images.detach(), logits.detach().isnan().any(dim=1)
        for image in images[broken]:
            inside = in_ball(image - self.x, self.threat)
            self.images[inside] = image
            self.seen |= inside

    def replace(
        self, rows: torch.Tensor, found: torch.Tensor, robust: torch.Tensor
    ) -> torch.Tensor:
        """Put the images kept into `found` where the package takes `rows` for robust.

        Where a NaN in the gradient has made the image itself NaN, too: the one kept, or the clean.

        Returns:
            (rows,) bool, where an image kept was put.
        """
        open_rows = robust | found.isnan().flatten(1).any(dim=1)
        found[open_rows] = self.images[rows[open_rows]]
        return self.seen[rows] & open_rows
