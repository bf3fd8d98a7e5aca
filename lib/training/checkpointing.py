"""The state of a training: what lives through it, what a checkpoint keeps, how it is restored."""

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.metrics import MetricSums
from lib.algorithm.schedules import Schedule
from lib.algorithm.training import Trainer
from lib.data.datasets import DistributedBatchSampler
from lib.data.loader import Loader
from lib.evaluation.load_model import ModelSettings
from lib.evaluation.task import EvaluationData
from lib.training.tensorboard import TensorBoardLog
from utils.config.settings import Config
from utils.distributed.context import DistributedContext
from utils.distributed.signals import SignalRequests
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.checkpoint import Checkpoint, save_best, save_checkpoint
from utils.storage.conditions import processor, versions
from utils.storage.run_folder import BEST, BEST_EMA, LATEST

# The fields of `Progress` for the best value so far, by the file of that network.
BEST_VALUES = {BEST: "best", BEST_EMA: "best_ema"}


@dataclass
class Progress:
    """Where a run stands; what a checkpoint keeps beside weights, momentum and noise."""

    epoch: int = 0  # pass over the data, counted from 0
    position: int = 0  # minibatches of the pass that are done, over all processes
    totals: list[float] = field(default_factory=lambda: [0.0, 0, 0, 0])  # see `MetricSums.totals`
    seconds: float = 0.0  # spent on the pass so far
    history: list[list] = field(default_factory=list)  # rows of metrics.csv
    gradient_sums: torch.Tensor | None = None  # of `GradientNorms`
    images_hash: str = ""  # of the list of training images; "" in checkpoints that do not have it
    best: float = -1.0  # the largest value of what `TRAIN.select` looks at, percent
    best_ema: float = -1.0  # the same of the averaged weights
    best_of: dict[str, str] = field(default_factory=dict)  # what both measure, by `selection_of`
    compiled: bool | str = False  # how the network is, see `utils.compiling.compile_mode`

    def end_epoch(self) -> None:
        """The next epoch is to begin."""
        self.epoch, self.position = self.epoch + 1, 0
        self.totals, self.seconds = [0.0, 0, 0, 0], 0.0


@dataclass
class Run:
    """Everything that lives through the epochs of a training."""

    config: Config
    context: DistributedContext
    logger: Logger
    requests: SignalRequests
    model_settings: ModelSettings
    trainer: Trainer
    progress: Progress
    schedule: Schedule
    order: DistributedBatchSampler
    loader: Loader
    validation: EvaluationData
    selection: EvaluationData  # the images that choose the best model
    norms: GradientNorms | None
    sums: MetricSums  # of the epoch so far, in this process
    board: TensorBoardLog | None = None
    epoch_started: float = 0.0  # as if without interruptions; monotonic seconds
    resumed_at: float = 0.0  # when this process began with the epoch
    saved_at: float = field(default_factory=time.monotonic)
    drawn_at: float = field(default_factory=time.monotonic)
    warned_of_waiting: bool = False

    @property
    def step(self) -> int:
        """Minibatches that are done since the beginning of the training."""
        return self.progress.epoch * self.order.batches_per_epoch() + self.progress.position

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network, and that of averaged weights if any, by the file of the best of it."""
        average = self.trainer.average
        averaged = {} if average is None else {BEST_EMA: average.module}
        return {BEST: self.trainer.model, **averaged}

    def close(self) -> None:
        """End the reading processes and the logs."""
        self.loader.kill_workers()
        if self.board is not None:
            self.board.close()


def begin_epoch(run: Run) -> None:
    """Take sums and clock of the epoch up where `run.progress` has them."""
    totals = run.progress.totals if run.context.is_main else None
    run.sums = MetricSums(run.context.device, totals)
    run.loader.seconds_waited, run.resumed_at = 0.0, time.monotonic()
    run.epoch_started = run.resumed_at - run.progress.seconds


def epoch_totals(run: Run) -> list[float]:
    """The epoch's `MetricSums.totals` over all processes; this synchronises with the device."""
    totals = run.context.sum(run.sums.totals())
    if not math.isfinite(totals[0]):
        where = f"epoch {run.progress.epoch + 1}, by minibatch {run.progress.position}"
        raise diverged(f"the loss is not finite in {where}", run.config.run_dir)
    return totals


def save(run: Run, best: Collection[str] = ()) -> None:
    """Write checkpoint.pth.tar; rank 0 writes, every process gives its share of the noise.

    Args:
        best: model_best.pth.tar and model_ema_best.pth.tar, to be written first; they keep the
            network and how to use it, without the state of the training.

    Raises:
        UserError: loss or weights are not finite, or the disk is full; the last checkpoint stays.
    """
    progress, trainer, folder = run.progress, run.trainer, run.config.run_dir
    progress.totals = epoch_totals(run)
    progress.seconds = time.monotonic() - run.epoch_started
    progress.gradient_sums = None if run.norms is None else run.norms.sums.cpu()
    noise = run.context.gather_strided(trainer.noise)
    if run.context.is_main:
        contents = {name: network_content(run, name) for name in {BEST, *best}}
        for name in best:
            save_best(folder, contents[name], name)
        training = {
            **vars(progress),
            "noise": noise,
            "scaler": trainer.scaler.state_dict(),
            "random_state": torch.get_rng_state(),
        }
        if trainer.average is not None:
            count = int(trainer.average.n_averaged)
            training["ema"] = {"state_dict": state_of(trainer.average.module), "n_averaged": count}
        optimizer = trainer.optimizer.state_dict()
        save_checkpoint(folder, {**contents[BEST], "optimizer": optimizer, "training": training})
    run.saved_at = time.monotonic()


def network_content(run: Run, name: str) -> dict[str, Any]:
    """What a checkpoint keeps of one of `Run.networks`, and how to use it."""
    state_dict = state_of(run.networks[name])
    if not all(bool(value.isfinite().all()) for value in state_dict.values()):
        where = f"epoch {run.progress.epoch + 1}"
        raise diverged(f"weights are not finite in {where}", run.config.run_dir)
    return {
        "epoch": run.progress.epoch,
        "arch": run.model_settings.arch,
        "best_prec1": getattr(run.progress, BEST_VALUES[name]),
        "model": vars(run.model_settings),
        "state_dict": state_dict,
        "config": run.config.as_dict(),
        "versions": machine(run.context.device),
    }


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """A state_dict on the CPU in plain layout, whatever it was trained in."""
    state = network.state_dict()
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def machine(device: torch.device) -> dict[str, str]:
    """What rounding depends on: versions, and the name of the device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {**versions(), "device": name}


def diverged(what: str, folder: Path) -> UserError:
    """The error of a training whose numbers are not finite any more, and its fix."""
    fix = "lower TRAIN.lr or use TRAIN.precision fp32"
    if (folder / LATEST).exists():
        what += f"; the last checkpoint in {folder} is intact"
        return UserError(f"{what}: {fix}, and --resume auto")
    return UserError(f"{what}, before anything was saved: {fix}, and start from scratch")


def restore_state(
    checkpoint: Checkpoint,
    trainer: Trainer,
    context: DistributedContext,
    start_epoch: int,
    logger: Logger,
) -> Progress:
    """Resume from a checkpoint, bit by bit where it holds the state of a training.

    Args:
        start_epoch: the earliest pass to begin with, where the file holds no training state.
    """
    content, state = checkpoint.content, checkpoint.training
    restore_momentum(trainer.optimizer, content.get("optimizer"), checkpoint.path, logger)
    if state is None:
        epoch = max(checkpoint.epoch, start_epoch)
        taken = "weights and momentum" if content.get("optimizer") else "weights"
        logger.info(f"{taken} of {checkpoint.path}: epoch {epoch + 1} begins")
        return Progress(epoch=epoch)
    was, now = content.get("versions", {}), machine(context.device)
    if changes := [f"{k} {was[k]}, now {v}" for k, v in now.items() if was.get(k, v) != v]:
        logger.info(f"note: not bit by bit as it would have gone on: {'; '.join(changes)}")
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
        if {name for state in saved["state"].values() for name in state} - {"momentum_buffer"}:
            raise ValueError("not SGD's")
        optimizer.load_state_dict(saved)
        for parameter, state in optimizer.state.items():
            buffer = state["momentum_buffer"]
            if buffer is None:  # of a training that took no step
                continue
            if buffer.shape != parameter.shape:
                raise ValueError(f"momentum of shape {tuple(buffer.shape)}")
            # Laid out like its parameter: the fused step reads both as raw memory.
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(f"{path}: its optimizer state does not fit ({error}); momentum begins at 0")
        optimizer.state.clear()
    for group, values in zip(optimizer.param_groups, now, strict=True):
        group.update(values)
