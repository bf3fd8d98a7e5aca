"""PGD: initialise, step, project. Madry et al. 2018, arXiv:1706.06083, Eq. of Sec. 2.1.

All images are pixels in [0, 1]; eps and steps are lengths in the norm of the ball.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from lib.algorithm.losses import PerImageLoss, ce_loss
from lib.algorithm.metrics import derived_seed
from lib.algorithm.norms import LINF, Norm
from models.eval_norm import cheap_backward

Logits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Search:
    """What PGD ascends, and how far.

    Attributes:
        steps: of one restart.
        step_size: length of a step; in Linf in units of [0, 1].
        eps: radius of the ball, in the same unit.
        loss: ascended; one value an image.
        norm: of the ball.
    """

    steps: int
    step_size: float
    eps: float
    loss: PerImageLoss = ce_loss
    norm: Norm = LINF


class Step(NamedTuple):
    """The next images, and the gradient and the logits at the ones before that led there."""

    adversarial: torch.Tensor
    gradient: torch.Tensor
    logits: torch.Tensor


def random_start(
    image: int, shape: Sequence[int], eps: float, seed: int, restart: int = 0, norm: Norm = LINF
) -> torch.Tensor:
    """A uniform point of the ball, of one image's shape, that depends on the arguments alone.

    Drawn on the CPU from a generator of its own: the same in every batch, device and process.

    Args:
        image: its number, from 0 on, of any size.
        shape: (3, H, W).
        eps: radius of the ball.
        seed: of the evaluation.
        restart: its number.
        norm: of the ball.
    """
    noise = torch.empty(tuple(shape))
    norm.draw(noise, eps, torch.Generator().manual_seed(derived_seed(seed, restart, image)))
    return noise


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


def ascent_step(
    logits_of: Logits,
    adversarial: torch.Tensor,
    labels: torch.Tensor,
    centre: torch.Tensor,
    search: Search,
) -> Step:
    """x <- project(x + step * direction(dloss/dx)), the direction being its sign in Linf."""
    gradient, logits = loss_gradient(logits_of, adversarial, labels, search.loss)
    moved = adversarial.add(search.norm.direction(gradient), alpha=search.step_size)
    return Step(search.norm.project(moved, centre, search.eps), gradient, logits)


def pgd(
    logits_of: Logits,
    images: torch.Tensor,
    labels: torch.Tensor,
    start: torch.Tensor,
    search: Search,
    ball_around_start: bool = False,
) -> Iterator[Step]:
    """Plain PGD, one item a step.

    Args:
        logits_of: images to what the loss takes.
        images: (B, 3, H, W) in [0, 1], the clean ones.
        labels: (B,) int64.
        start: (B, 3, H, W) in the ball around 0, added before the first step.
        search: steps, ball and loss.
        ball_around_start: centre the ball on the image after its random start, as the release of
            arXiv:2002.08619 does, so that the result is up to 2 eps from the clean image.
    """
    adversarial = (images + start).clamp(0, 1)
    centre = adversarial if ball_around_start else images
    for _ in range(search.steps):
        step = ascent_step(logits_of, adversarial, labels, centre, search)
        adversarial = step.adversarial
        yield step


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, parameters without gradients; all as before afterwards.

    Batch-norm takes the cheaper way back to the input that it then has on CUDA. cuDNN tunes no
    kernels meanwhile: batches have many sizes, each for a short time.
    """
    training = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    tuning, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    model.eval().requires_grad_(False)
    try:
        with cheap_backward(model):
            yield
    finally:
        torch.backends.cudnn.benchmark = tuning
        for module, mode in training:
            module.training = mode
        for parameter, needs_gradient in required:
            parameter.requires_grad_(needs_gradient)
