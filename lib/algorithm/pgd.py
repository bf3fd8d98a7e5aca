"""PGD: initialise, step, project. Madry et al. 2018, arXiv:1706.06083, Eq. of Sec. 2.1.

All images are pixels in [0, 1], eps and steps in the same unit, and the ball is that of the
l-infinity norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from lib.algorithm.losses import ATTACK_LOSS, PerImageLoss
from lib.algorithm.seeds import derived_seed

Logits = Callable[[torch.Tensor], torch.Tensor]


class Step(NamedTuple):
    """The next images, and the gradient and the logits at the ones before that led there."""

    adversarial: torch.Tensor
    gradient: torch.Tensor
    logits: torch.Tensor


def random_start(
    indices: torch.Tensor,
    like: torch.Tensor,
    eps: float,
    seed: int,
    restart: torch.Tensor | int = 0,
) -> torch.Tensor:
    """Uniform noise in [-eps, eps], (B, 3, H, W), that depends on nothing but each image's index.

    Drawn on the CPU, one generator an image: the same for every batch size, device, process.

    Args:
        indices: (B,), of the images.
        like: (B, 3, H, W), of the noise's shape, device and precision.
        eps: in units of [0, 1].
        seed: of the evaluation.
        restart: its number, one for each image or one for all.
    """
    noise = torch.empty(like.shape, dtype=torch.float32)
    keys = torch.stack([indices, torch.zeros_like(indices) + restart], dim=1).tolist()
    for row, (index, number) in zip(noise, keys, strict=True):
        generator = torch.Generator().manual_seed(derived_seed(seed, number, index))
        row.uniform_(-eps, eps, generator=generator)
    return noise.to(like, memory_format=torch.preserve_format)


def project(adversarial: torch.Tensor, centre: torch.Tensor, eps: float) -> torch.Tensor:
    """Nearest images within eps of `centre` and within [0, 1]."""
    inside = torch.minimum(torch.maximum(adversarial, centre - eps), centre + eps)
    return inside.clamp_(0, 1)


def loss_gradient(
    logits_of: Logits, images: torch.Tensor, labels: torch.Tensor, loss: PerImageLoss
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of each image's loss at its pixels, (B, 3, H, W), and the logits (B, classes).

    The losses are added up, so that an image's gradient does not depend on the batch. Each image's
    gradient is scaled by a power of two of its own, which no sign step can see: a confident image's
    cross-entropy has a gradient at the logits that float16 cannot hold on the way to the pixels.
    """
    images = images.detach().requires_grad_()
    logits = logits_of(images)
    (at_logits,) = torch.autograd.grad(loss(logits, labels).sum(), logits, retain_graph=True)
    largest = at_logits.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    at_logits = at_logits * torch.exp2(-largest.log2().floor())
    (gradient,) = torch.autograd.grad(logits, images, at_logits)
    return gradient, logits.detach()


def sign_step(
    logits_of: Logits,
    adversarial: torch.Tensor,
    labels: torch.Tensor,
    centre: torch.Tensor,
    *,
    step_size: float,
    eps: float,
    loss: PerImageLoss,
) -> Step:
    """x <- project(x + step * sign(dloss/dx)): one step of PGD."""
    gradient, logits = loss_gradient(logits_of, adversarial, labels, loss)
    moved = adversarial.add(gradient.sign(), alpha=step_size)
    return Step(project(moved, centre, eps), gradient, logits)


def pgd(
    logits_of: Logits,
    images: torch.Tensor,
    labels: torch.Tensor,
    start: torch.Tensor,
    *,
    steps: int,
    step_size: float,
    eps: float,
    loss: PerImageLoss = ATTACK_LOSS["ce"],
    ball_around_start: bool = False,
) -> Iterator[Step]:
    """Plain PGD, one item a step.

    Args:
        logits_of: images to what the loss takes.
        images: (B, 3, H, W) in [0, 1], the clean ones.
        labels: (B,) int64.
        start: (B, 3, H, W) in [-eps, eps], added before the first step.
        steps: sign steps.
        step_size: in units of [0, 1].
        eps: in units of [0, 1].
        loss: ascended; one value an image.
        ball_around_start: centre the ball on the image after its random start, as the release of
            arXiv:2002.08619 does, so that the result is up to 2 eps from the clean image.
    """
    adversarial = (images + start).clamp(0, 1)
    centre = adversarial if ball_around_start else images
    for _ in range(steps):
        step = sign_step(
            logits_of, adversarial, labels, centre, step_size=step_size, eps=eps, loss=loss
        )
        adversarial = step.adversarial
        yield step


@contextmanager
def attacking(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, parameters without gradients; both as before afterwards."""
    training = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, needs_gradient in required:
            parameter.requires_grad_(needs_gradient)
