"""Training steps: free adversarial training, and FastAT, PGD-AT and natural training beside it.

Free adversarial training (Shafahi et al. 2019, "Adversarial Training for Free!", arXiv:1904.12843,
Alg. 1) replays every minibatch m times. Each replay is one forward and one backward pass whose
gradient serves twice: its sign at the input moves the perturbation, and the parameters take an SGD
step. All methods share network, loss, optimizer and noise buffer (`Trainer`) and a step's
signature: images and labels in, loss and logits out, noise and weights updated.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lib.algorithm.losses import margin_cross_entropy
from lib.algorithm.metrics import derived_seed, precision_context
from lib.algorithm.pgd import Search, frozen_eval, pgd
from lib.algorithm.protocols import METHODS
from models.hypersphere import project_heads_

Network = Callable[..., torch.Tensor]  # as `Perturbed`
# Of noise (B, 3, H, W), in place, by a gradient, a step and eps: `update_noise_`.
NoiseUpdate = Callable[[torch.Tensor, torch.Tensor, float, float], None]
# Looks at the parameters' gradients between the backward pass and the update.
GradientHook = Callable[[], None]


@dataclass(frozen=True)
class TrainingSettings:
    """The numbers of a training step; lengths are in units of pixels in [0, 1].

    Attributes:
        eps: radius of the l-infinity ball.
        step: step of the noise.
        scaled_margin: s * m_HE with hypersphere embedding, else 0.
        precision: fp32, bf16 or fp16; noise, loss and parameters keep the parameters' own.
        label_smoothing: share of the target that goes to all classes alike.
        attack_steps: sign steps of PGD adversarial training.
    """

    eps: float
    step: float
    scaled_margin: float = 0.0
    precision: str = "fp32"
    label_smoothing: float = 0.0
    attack_steps: int = 0


class Perturbed(nn.Module):
    """A network at images under a perturbation, clamped to the range of pixels.

    Compiled, the sum and the clamp are part of its first kernel.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Images and noise, (B, 3, H, W), to logits (B, classes); without noise, as they are."""
        logits: torch.Tensor = self.network(
            images if noise is None else (images + noise).clamp(0, 1)
        )
        return logits


class Trainer:
    """A network in training: what its steps share.

    Args:
        model: the raw network; parameters, batch-norm statistics and heads live here.
        optimizer: over the model's parameters.
        noise: (B, 3, H, W), this process's positions of the global batch; changed in place.
        settings: the numbers of the training.
        network: what is called for the forward pass of an update: the model compiled or wrapped
            in DDP; the model, `Perturbed`, by default.
        attack_network: what is called where the gradient at the input alone is taken: as
            `network`, without DDP.
        move_noise: `update_noise_`, or the same compiled.
        average: of the weights, moved after every update.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        noise: torch.Tensor,
        settings: TrainingSettings,
        network: Network | None = None,
        attack_network: Network | None = None,
        move_noise: NoiseUpdate | None = None,
        average: AveragedModel | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.noise = noise
        self.settings = settings
        self.network = network or Perturbed(model)
        self.attack_network = attack_network or Perturbed(model)
        self.move_noise = move_noise or update_noise_
        self.average = average
        scaled = settings.precision == "fp16"
        self.scaler = torch.amp.GradScaler(noise.device.type, enabled=scaled)

    def logits(
        self, network: Network, images: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, classes) of images under noise, if any, at the training's precision."""
        with precision_context(images.device, self.settings.precision):
            return network(images) if noise is None else network(images, noise)

    def criterion(
        self, logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
    ) -> torch.Tensor:
        """The training loss, which the noise ascends and the weights descend."""
        settings = self.settings
        return margin_cross_entropy(
            logits, labels, settings.scaled_margin, settings.label_smoothing, reduction
        )

    def loss(
        self,
        network: Network,
        images: torch.Tensor,
        labels: torch.Tensor,
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The training loss, a mean over the images, and the logits (B, classes)."""
        logits = self.logits(network, images, noise)
        return self.criterion(logits, labels), logits

    def backward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        weight: float = 1.0,
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One forward and one backward pass: gradients of the parameters, and of the noise.

        Args:
            images: (B, 3, H, W) in [0, 1], not normalised.
            labels: (B,) int64.
            weight: factor on the loss whose gradient is taken.
            noise: (B, 3, H, W), added to the images, whose sum is clamped to [0, 1].

        Returns:
            The mean loss of the images and their logits, on the device.
        """
        loss, logits = self.loss(self.network, images, labels, noise)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss if weight == 1 else loss * weight).backward()
        return loss.detach(), logits.detach()

    def update(self, gradient_hook: GradientHook | None = None) -> None:
        """An SGD step by the gradients of `backward`; heads are projected, the average moves."""
        if gradient_hook is not None:
            self.scaler.unscale_(self.optimizer)
            gradient_hook()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        project_heads_(self.model)
        if self.average is not None:
            self.average.update_parameters(self.model)


def make_noise(
    batch_size: int, crop_size: int, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The perturbation buffer (batch, 3, H, W), zero at the start of training: line 2."""
    shape = (batch_size, 3, crop_size, crop_size)
    return torch.zeros(shape, dtype=dtype, device=device).to(memory_format=torch.channels_last)


def free_step(
    trainer: Trainer,
    images: torch.Tensor,
    labels: torch.Tensor,
    weight: float = 1.0,
    gradient_hook: GradientHook | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One replay of a minibatch: one backward pass moves the noise and updates the parameters.

    Args:
        images: (B, 3, H, W) in [0, 1], not normalised; B at most the buffer's.
        labels: (B,) int64.
        weight: factor on the loss; 0 leaves the noise of these images as it is.
        gradient_hook: called before the update.

    Returns:
        The mean loss of the images and their logits, on the device.
    """
    noise = trainer.noise[: len(images)]  # by position, shared by successive minibatches
    delta = noise.detach().requires_grad_()
    # Lines 7 and 8: one pass at the images under the noise gives both gradients.
    loss, logits = trainer.backward(images, labels, weight, delta)
    if weight:
        assert delta.grad is not None
        # Lines 11 and 12; the gradient is one at the parameters before line 9.
        trainer.move_noise(noise, delta.grad, trainer.settings.step, trainer.settings.eps)
    trainer.update(gradient_hook)  # line 9
    return loss, logits


@torch.no_grad()
def update_noise_(noise: torch.Tensor, gradient: torch.Tensor, step: float, eps: float) -> None:
    """Move the noise one sign step up the loss and back into [-eps, eps], in place.

    Args:
        noise: (B, 3, H, W).
        gradient: of the loss at the noise, same shape; where it is 0, or NaN from fp16's overflow,
            the noise stays.
        step: in units of [0, 1].
        eps: in units of [0, 1].
    """
    noise.add_(gradient.nan_to_num(nan=0.0).sign(), alpha=step).clamp_(-eps, eps)


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
        ascent, _ = trainer.loss(trainer.attack_network, images, labels, delta)
        (gradient,) = torch.autograd.grad(trainer.scaler.scale(ascent), delta)
        trainer.move_noise(noise, gradient, settings.step, settings.eps)  # FGSM, projected
    loss, logits = trainer.backward(images, labels, weight, noise)
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
    loss_of_each = partial(trainer.criterion, reduction="none")
    search = Search(settings.attack_steps, settings.step, settings.eps, loss_of_each)
    logits_of = partial(trainer.logits, trainer.attack_network)
    with frozen_eval(trainer.model):
        for iterate in pgd(logits_of, images, labels, trainer.noise[: len(images)], search):
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


TRAINING_STEP = dict(zip(METHODS, (free_step, fast_step, pgd_step, natural_step), strict=True))
