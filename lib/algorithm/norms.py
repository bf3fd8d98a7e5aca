"""Balls of the l-infinity, l2 and l1 norms: random points, directions of ascent, projections.

A projection is onto what lies both in the ball around a centre and in the pixel range [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lib.algorithm.protocols import NORM_NAMES

SPARSITY = 0.01  # of the values that an l1 step changes; Tramer & Boneh 2019, arXiv:1904.13000
TINY = 1e-30  # of a gradient that vanishes


@dataclass(frozen=True)
class Norm:
    """What PGD needs of a norm.

    Attributes:
        name: Linf, L2 or L1.
        order: of torch's vector_norm.
        draw: (one image's noise, eps, generator): fill it with a uniform point of the ball.
        direction: gradients (B, 3, H, W) to steps of length 1 up the loss.
        project: (images, centre, eps) to the nearest images in the ball and in [0, 1].
    """

    name: str
    order: float
    draw: Callable[[torch.Tensor, float, torch.Generator], None]
    direction: Callable[[torch.Tensor], torch.Tensor]
    project: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]

    def length(self, change: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to the norm of each image, (B, 1, 1, 1)."""
        length: torch.Tensor = torch.linalg.vector_norm(
            change, self.order, dim=(1, 2, 3), keepdim=True
        )
        return length


def draw_linf(noise: torch.Tensor, eps: float, generator: torch.Generator) -> None:
    """Uniform in [-eps, eps] in every value."""
    noise.uniform_(-eps, eps, generator=generator)


def draw_l2(noise: torch.Tensor, eps: float, generator: torch.Generator) -> None:
    """A Gaussian's direction, and a radius whose d-th power is uniform."""
    radius = eps * torch.rand((), generator=generator) ** (1 / noise.numel())
    noise.normal_(generator=generator).mul_(radius / noise.norm())


def draw_l1(noise: torch.Tensor, eps: float, generator: torch.Generator) -> None:
    """A Laplace distribution's direction, and a radius whose d-th power is uniform."""
    radius = eps * torch.rand((), generator=generator) ** (1 / noise.numel())
    signs = torch.randint(2, noise.shape, generator=generator) * 2 - 1
    noise.exponential_(generator=generator).mul_(signs).mul_(radius / noise.abs().sum())


def ascend_l2(gradient: torch.Tensor) -> torch.Tensor:
    """Along the gradient."""
    return gradient / L2.length(gradient).clamp_min(TINY)


def ascend_l1(gradient: torch.Tensor) -> torch.Tensor:
    """Along the largest values alone: steepest ascent would change a single one."""
    size = gradient.abs().flatten(1)
    count = max(1, round(SPARSITY * size.shape[1]))
    smallest = size.topk(count, dim=1).values[:, -1].view(-1, 1, 1, 1)
    chosen = (gradient.abs() >= smallest) * gradient.sign()
    return chosen / L1.length(chosen).clamp_min(1)


def project_linf(images: torch.Tensor, centre: torch.Tensor, eps: float) -> torch.Tensor:
    """Clamp every value."""
    inside = torch.minimum(torch.maximum(images, centre - eps), centre + eps)
    return inside.clamp_(0, 1)


def project_l2(images: torch.Tensor, centre: torch.Tensor, eps: float) -> torch.Tensor:
    """The nearest point scales the change, then clamps it to the pixel range."""
    change = images - centre

    def shrunk(share: torch.Tensor) -> torch.Tensor:
        return (centre + share * change).clamp(0, 1)

    return largest_inside(shrunk, centre, eps, L2)


def project_l1(images: torch.Tensor, centre: torch.Tensor, eps: float) -> torch.Tensor:
    """The nearest point takes the same amount off every value's change, then clamps it."""
    change = images - centre
    most = change.abs().amax(dim=(1, 2, 3), keepdim=True)

    def shrunk(share: torch.Tensor) -> torch.Tensor:
        kept = (change.abs() - (1 - share) * most).clamp_min(0)
        return (centre + change.sign() * kept).clamp(0, 1)

    return largest_inside(shrunk, centre, eps, L1)


def largest_inside(
    shrunk: Callable[[torch.Tensor], torch.Tensor], centre: torch.Tensor, eps: float, norm: Norm
) -> torch.Tensor:
    """The point of a path from the centre (0) to the clamped images (1) that just is in the ball.

    The conditions of Karush, Kuhn and Tucker leave the one multiplier of the ball to find; the
    distance from the centre grows along the path, so it is found by bisection.
    """
    one = torch.ones(len(centre), 1, 1, 1, dtype=centre.dtype, device=centre.device)
    inside, outside = torch.zeros_like(one), one
    inside = torch.where(norm.length(shrunk(one) - centre) <= eps, one, inside)
    for _ in range(30 if centre.dtype == torch.float32 else 55):
        middle = (inside + outside) / 2
        fits = norm.length(shrunk(middle) - centre) <= eps
        inside, outside = torch.where(fits, middle, inside), torch.where(fits, outside, middle)
    return shrunk(inside)


LINF = Norm("Linf", float("inf"), draw_linf, torch.sign, project_linf)
L2 = Norm("L2", 2.0, draw_l2, ascend_l2, project_l2)
L1 = Norm("L1", 1.0, draw_l1, ascend_l1, project_l1)
NORMS = dict(zip(NORM_NAMES, (LINF, L2, L1), strict=True))
