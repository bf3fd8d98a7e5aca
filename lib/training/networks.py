"""What forward passes of a training go through: the model, compiled, or in DDP."""

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lib.algorithm.training import (
    TRAINING_STEP,
    GradientHook,
    Network,
    NoiseUpdate,
    Perturbed,
    Trainer,
    update_noise_,
)
from utils.compiling import Compiled
from utils.distributed.context import DistributedContext


def make_networks(
    model: nn.Module, mode: bool | str, share: int, context: DistributedContext
) -> tuple[Network, Network, NoiseUpdate]:
    """What forward passes go through, those of updates and those of attacks; what moves the noise.

    The model, compiled for whole minibatches; for updates of several processes in DDP.

    Args:
        mode: see `utils.compiling.compile_mode`.
        share: images of a whole minibatch that fall to this process.
    """

    def compiled(network: nn.Module) -> Network:
        return Compiled(network, share, mode) if mode else network

    perturbed = Perturbed(model)
    attacked = compiled(perturbed)
    move_noise = Compiled(update_noise_, share) if mode else update_noise_
    if context.world_size == 1:
        return attacked, attacked, move_noise
    ids = [context.device.index] if context.device.type == "cuda" else None
    # Training does not read the running statistics, so rank 0's are copied where they are read,
    # instead of at every forward pass.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    sync: Any = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    updated = DistributedDataParallel(
        perturbed, device_ids=ids, gradient_as_bucket_view=True, **sync
    )
    return compiled(updated), attacked, move_noise


class Rehearsal(Trainer):
    """Another trainer's networks, in steps that compute everything and update nothing."""

    def __init__(self, trainer: Trainer) -> None:
        networks = trainer.network, trainer.attack_network, trainer.move_noise
        noise = torch.zeros_like(trainer.noise)
        super().__init__(trainer.model, trainer.optimizer, noise, trainer.settings, *networks)

    def update(self, gradient_hook: GradientHook | None = None) -> None:
        self.optimizer.zero_grad(set_to_none=True)


def rehearse(trainer: Trainer, method: str) -> None:
    """A step of a whole minibatch that leaves no trace in weights, statistics or momentum."""
    kept = [buffer.clone() for buffer in trainer.model.buffers()]
    trainer.model.train()
    images = torch.zeros_like(trainer.noise)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    try:
        TRAINING_STEP[method](Rehearsal(trainer), images, labels)
    finally:
        for buffer, value in zip(trainer.model.buffers(), kept, strict=True):
            buffer.copy_(value)


def run_eagerly(trainer: Trainer) -> None:
    """Let passes go through the networks as they are."""
    for name in ("network", "attack_network", "move_noise"):
        network = getattr(trainer, name)
        setattr(trainer, name, network.network if isinstance(network, Compiled) else network)
