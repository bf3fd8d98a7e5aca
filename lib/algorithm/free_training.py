"""Free adversarial training: the noise buffer and the free step.

Shafahi et al. 2019, "Adversarial Training for Free!", arXiv:1904.12843, Alg. 1. Every minibatch
is replayed m times. Each replay is one forward and one backward pass whose gradient serves twice:
its sign at the input moves the perturbation, and the parameters take an SGD step.
"""

from __future__ import annotations

import torch

from lib.algorithm.trainer import GradientHook, Trainer


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
    adversarial = (images + delta).clamp(0, 1)
    loss, logits = trainer.backward(adversarial, labels, weight)  # lines 7 and 8: both gradients
    if weight:
        assert delta.grad is not None
        # Lines 11 and 12; the gradient is one at the parameters before line 9.
        update_noise_(noise, delta.grad, trainer.settings.step, trainer.settings.eps)
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
