"""Free adversarial training: the noise buffer, one free step, one pass over the data.

Shafahi et al. 2019, "Adversarial Training for Free!", arXiv:1904.12843, Alg. 1. Every minibatch
is replayed m times. Each replay is one forward and one backward pass whose gradient serves twice:
its sign at the input moves the perturbation, and the parameters take an SGD step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.losses import margin_cross_entropy
from lib.algorithm.metrics import MetricSums
from lib.algorithm.precision import precision_context
from models.hypersphere import project_heads_

Network = Callable[[torch.Tensor], torch.Tensor]
# Called after the backward pass and before the update: (images, adversarial, labels, weight).
Probe = Callable[[torch.Tensor, torch.Tensor, float], None]


@dataclass(frozen=True)
class FreeSettings:
    """The numbers of Alg. 1, in units of pixels in [0, 1].

    Attributes:
        eps: radius of the l-infinity ball.
        step: step of the noise.
        n_repeats: replays m of each minibatch.
        scaled_margin: s * m_HE with hypersphere embedding, else 0.
        precision: fp32, bf16 or fp16; noise, loss and parameters keep the parameters' own.
    """

    eps: float
    step: float
    n_repeats: int
    scaled_margin: float = 0.0
    precision: str = "fp32"


def make_noise(
    batch_size: int, crop_size: int, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The perturbation buffer (batch, 3, H, W), zero at the start of training."""
    shape = (batch_size, 3, crop_size, crop_size)
    return torch.zeros(shape, dtype=dtype, device=device).to(memory_format=torch.channels_last)


@torch.no_grad()
def update_noise_(noise: torch.Tensor, gradient: torch.Tensor, step: float, eps: float) -> None:
    """Move the noise one sign step up the loss and back into [-eps, eps], in place.

    Args:
        noise: (B, 3, H, W).
        gradient: of the loss at the noise, same shape; sign(0) is 0.
        step: in units of [0, 1].
        eps: in units of [0, 1].
    """
    noise.add_(gradient.sign(), alpha=step).clamp_(-eps, eps)


class FreeTrainer:
    """A network in free adversarial training.

    Args:
        model: the raw network; parameters, batch-norm statistics and heads live here.
        optimizer: over the model's parameters.
        noise: (B, 3, H, W), this process's positions of the global batch; changed in place.
        settings: the numbers of Alg. 1.
        network: what is called for a forward pass: the model compiled or wrapped in DDP; the
            model itself by default.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        noise: torch.Tensor,
        settings: FreeSettings,
        network: Network | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.noise = noise
        self.settings = settings
        self.network = model if network is None else network
        scaled = settings.precision == "fp16"
        self.scaler = torch.amp.GradScaler(noise.device.type, enabled=scaled)

    def loss(
        self, network: Network, x: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The training loss, a mean over the images, and the logits (B, classes)."""
        with precision_context(x.device, self.settings.precision):
            logits = network(x)
        return margin_cross_entropy(logits, labels, self.settings.scaled_margin), logits

    def free_step(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        weight: float = 1.0,
        probe: Probe | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One replay: move the noise and update the parameters by one backward pass.

        The noise moves by the gradient at the same parameters as the update.

        Args:
            images: (B, 3, H, W) in [0, 1], not normalised; B at most the buffer's.
            labels: (B,) int64.
            weight: factor on the loss that makes an average over processes a mean over images;
                0 for images that only keep a process busy, whose noise is not moved.
            probe: looks at the gradients before they are used.

        Returns:
            The mean loss of the images and their logits, on the device.
        """
        noise = self.noise[: len(images)]
        delta = noise.detach().requires_grad_()
        adversarial = (images + delta).clamp(0, 1)
        loss, logits = self.loss(self.network, adversarial, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss if weight == 1 else loss * weight).backward()
        if probe is not None:
            self.scaler.unscale_(self.optimizer)
            probe(images, labels, weight)
        if weight:
            gradient = delta.grad
            if self.scaler.is_enabled():  # an overflow must not reach the buffer as NaN
                gradient = gradient.nan_to_num_(nan=0.0)
            update_noise_(noise, gradient, self.settings.step, self.settings.eps)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        project_heads_(self.model)
        return loss.detach(), logits.detach()


def train_pass(
    trainer: FreeTrainer,
    batches: Iterable[DeviceBatch],
    sums: MetricSums,
    *,
    weight_of: Callable[[int, int], float],
    probe_of: Callable[[int], Probe | None],
    after: Callable[[int], None],
    start: int = 0,
) -> None:
    """Train on the minibatches of a pass over the data, each replayed m times.

    Args:
        trainer: in training mode afterwards.
        batches: minibatches, the first one being number `start` of the pass.
        sums: collects loss and accuracy of the replays.
        weight_of: (number of the minibatch, its images here) to the weight of `free_step`.
        probe_of: number of the minibatch to a probe, or None.
        after: called with the number of minibatches done; may print, save or raise.
    """
    for number, (images, labels, _) in enumerate(batches, start):
        trainer.model.train()  # a hook may have evaluated
        weight, probe = weight_of(number, len(images)), probe_of(number)
        for _ in range(trainer.settings.n_repeats):
            loss, logits = trainer.free_step(images, labels, weight, probe)
            if weight:
                sums.update(loss, logits, labels, len(images))
        after(number + 1)
