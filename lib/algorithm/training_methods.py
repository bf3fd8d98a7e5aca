"""The other trainings of the family: FastAT, PGD adversarial training, natural training.

They share loss, network, optimizer and noise buffer with `free_step`, and its signature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from lib.algorithm.free_training import free_step, update_noise_
from lib.algorithm.pgd import attacking, pgd
from lib.algorithm.protocols import METHOD_NAMES
from lib.algorithm.seeds import derived_seed
from lib.algorithm.trainer import GradientHook, Trainer

Step = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def draw_noise_(
    noise: torch.Tensor, eps: float, key: tuple[int, ...], positions: Iterable[int]
) -> None:
    """Fill the buffer with uniform noise in [-eps, eps].

    Each image has a generator of its own, so that its noise does not depend on how the minibatch
    is shared out.

    Args:
        noise: (B, 3, H, W).
        eps: in units of [0, 1].
        key: what tells this draw from others: seed, epoch, minibatch.
        positions: of the buffer's images in the minibatch.
    """
    generator = torch.Generator(noise.device)
    for row, position in zip(noise, positions, strict=True):
        generator.manual_seed(derived_seed(*key, position))
        row.uniform_(-eps, eps, generator=generator)


def fast_step(
    trainer: Trainer,
    images: torch.Tensor,
    labels: torch.Tensor,
    weight: float = 1.0,
    gradient_hook: GradientHook | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One replay of fast adversarial training: a sign step of the noise, then an update at it.

    Wong et al. 2020, "Fast is better than free", arXiv:2001.03994, Alg. 3, as its ImageNet release
    has it. Arguments and results are those of `free_step`.
    """
    settings, noise = trainer.settings, trainer.noise[: len(images)]  # uniform in the ball
    if weight:
        delta = noise.detach().requires_grad_()
        ascent, _ = trainer.loss(trainer.attack_network, (images + delta).clamp(0, 1), labels)
        (gradient,) = torch.autograd.grad(trainer.scaler.scale(ascent), delta)
        update_noise_(noise, gradient, settings.step, settings.eps)  # FGSM, projected
    loss, logits = trainer.backward((images + noise).clamp(0, 1), labels, weight)
    trainer.update(gradient_hook)
    return loss, logits


def pgd_step(
    trainer: Trainer,
    images: torch.Tensor,
    labels: torch.Tensor,
    weight: float = 1.0,
    gradient_hook: GradientHook | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PGD adversarial training: PGD in evaluation mode from the noise, then an update at its end.

    Madry et al. 2018, arXiv:1706.06083, Eq. 2.1; in evaluation mode as MadryLab/robustness takes
    it, so that batch-norm's statistics see training images alone. Arguments and results are those
    of `free_step`.
    """
    settings, adversarial = trainer.settings, images
    with attacking(trainer.model):
        for iterate in pgd(
            partial(trainer.logits, trainer.attack_network),
            images,
            labels,
            start=trainer.noise[: len(images)],
            steps=settings.attack_steps,
            step_size=settings.step,
            eps=settings.eps,
            loss=partial(trainer.criterion, reduction="none"),
        ):
            adversarial = iterate.adversarial
    loss, logits = trainer.backward(adversarial, labels, weight)
    trainer.update(gradient_hook)
    return loss, logits


def natural_step(
    trainer: Trainer,
    images: torch.Tensor,
    labels: torch.Tensor,
    weight: float = 1.0,
    gradient_hook: GradientHook | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """An update at the clean images. Arguments and results are those of `free_step`."""
    loss, logits = trainer.backward(images, labels, weight)
    trainer.update(gradient_hook)
    return loss, logits


@dataclass(frozen=True)
class Method:
    """One of the trainings.

    Attributes:
        step: one replay of a minibatch.
        draws_noise: the noise is drawn for every minibatch, instead of kept from the one before.
        reads_statistics: the step reads batch-norm's running statistics.
        cost: forward-backward passes of a minibatch, from (replays, attack steps).
    """

    step: Step
    draws_noise: bool
    reads_statistics: bool
    cost: Callable[[int, int], int]


FREE = Method(free_step, False, False, lambda replays, _: replays)
FAST = Method(fast_step, True, False, lambda replays, _: 2 * replays)
PGD = Method(pgd_step, True, True, lambda replays, steps: replays * (steps + 1))
NATURAL = Method(natural_step, False, False, lambda replays, _: replays)
METHODS = dict(zip(METHOD_NAMES, (FREE, FAST, PGD, NATURAL), strict=True))
