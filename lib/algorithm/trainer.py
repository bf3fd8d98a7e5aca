"""A network in training: the loss with its gradients, and the update, whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lib.algorithm.losses import margin_cross_entropy
from lib.algorithm.precision import precision_context
from models.hypersphere import project_heads_

Network = Callable[[torch.Tensor], torch.Tensor]
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


class Trainer:
    """A network in training: what its steps share.

    Args:
        model: the raw network; parameters, batch-norm statistics and heads live here.
        optimizer: over the model's parameters.
        noise: (B, 3, H, W), this process's positions of the global batch; changed in place.
        settings: the numbers of the training.
        network: what is called for the forward pass of an update: the model compiled or wrapped
            in DDP; the model itself by default.
        attack_network: what is called where the gradient at the input alone is taken: as
            `network`, without DDP.
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
        average: AveragedModel | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.noise = noise
        self.settings = settings
        self.network = model if network is None else network
        self.attack_network = model if attack_network is None else attack_network
        self.average = average
        scaled = settings.precision == "fp16"
        self.scaler = torch.amp.GradScaler(noise.device.type, enabled=scaled)

    def logits(self, network: Network, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of pixels (B, 3, H, W) in [0, 1], at the training's precision."""
        with precision_context(x.device, self.settings.precision):
            return network(x)

    def criterion(
        self, logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
    ) -> torch.Tensor:
        """The training loss, which the noise ascends and the weights descend."""
        settings = self.settings
        return margin_cross_entropy(
            logits, labels, settings.scaled_margin, settings.label_smoothing, reduction
        )

    def loss(
        self, network: Network, x: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The training loss, a mean over the images, and the logits (B, classes)."""
        logits = self.logits(network, x)
        return self.criterion(logits, labels), logits

    def backward(
        self, x: torch.Tensor, labels: torch.Tensor, weight: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One forward and one backward pass: gradients of the parameters, and of what x is of.

        Args:
            x: (B, 3, H, W) in [0, 1], not normalised.
            labels: (B,) int64.
            weight: factor on the loss whose gradient is taken.

        Returns:
            The mean loss of the images and their logits, on the device.
        """
        loss, logits = self.loss(self.network, x, labels)
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
