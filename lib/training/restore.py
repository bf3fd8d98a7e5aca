"""A training's state from a checkpoint."""

from __future__ import annotations

from typing import Any

import torch

from lib.algorithm.training import Trainer
from lib.training.state import Progress
from utils.distributed.context import DistributedContext
from utils.logging import Logger
from utils.storage.checkpoint import Checkpoint


def restore_state(
    checkpoint: Checkpoint,
    trainer: Trainer,
    context: DistributedContext,
    start_epoch: int,
    logger: Logger,
    new_phase: bool = False,
) -> Progress:
    """Resume from a checkpoint, bit by bit where it holds the state of a training.

    Args:
        start_epoch: the earliest pass to begin with, where the file holds no training state.
        new_phase: take weights and momentum alone.
    """
    content, state = checkpoint.content, checkpoint.training
    restore_momentum(trainer.optimizer, content.get("optimizer"), checkpoint.path, logger)
    if state is None or new_phase:
        epoch = max(checkpoint.epoch, start_epoch)
        if new_phase:
            logger.info(f"weights and momentum of {checkpoint.path}: epoch {epoch + 1} begins")
        else:
            logger.warning(
                f"{checkpoint.path} holds no training state: epoch {epoch + 1} begins with zero"
                " noise"
            )
        return Progress(epoch=epoch)
    trainer.noise.copy_(state["noise"][context.rank :: context.world_size])
    if state["scaler"]:  # a training in fp32 or bf16 has none, and may be resumed in fp16
        trainer.scaler.load_state_dict(state["scaler"])
    if trainer.average is not None and "ema" in state:
        trainer.average.module.load_state_dict(state["ema"]["state_dict"])
        trainer.average.n_averaged.fill_(state["ema"]["n_averaged"])
    torch.set_rng_state(state["random_state"])
    progress = Progress(**{name: state[name] for name in vars(Progress()) if name in state})
    logger.info(
        f"resumed {checkpoint.path}: epoch {progress.epoch + 1}, minibatch {progress.position}"
    )
    return progress


def restore_momentum(
    optimizer: torch.optim.Optimizer, saved: Any, path: str, logger: Logger
) -> None:
    """Take the momentum buffers over; momentum and weight decay stay as configured now."""
    if saved is None:
        return
    now = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        names = {name for state in saved["state"].values() for name in state}
        if not names <= {"momentum_buffer"}:
            raise ValueError("not SGD's")
        optimizer.load_state_dict(saved)
        for parameter, state in optimizer.state.items():
            state["momentum_buffer"] = with_strides_of(parameter, state["momentum_buffer"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(f"{path}: its optimizer state does not fit ({error}); momentum begins at 0")
        optimizer.state.clear()
    for group, values in zip(optimizer.param_groups, now, strict=True):
        group.update(values)


def with_strides_of(parameter: torch.Tensor, buffer: torch.Tensor | None) -> torch.Tensor | None:
    """A buffer laid out in memory like its parameter: the fused step reads both as raw memory.

    Raises:
        ValueError: it has another shape.
    """
    if buffer is None:
        return None
    if buffer.shape != parameter.shape:
        raise ValueError(f"momentum of shape {tuple(buffer.shape)}")
    return torch.empty_like(parameter).copy_(buffer)
