"""The state of a training: what lives through it, and what a checkpoint keeps of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.metrics import MetricSums
from lib.algorithm.schedules import Schedule
from lib.algorithm.training import Trainer
from lib.data.loader import Loader
from lib.data.sampler import DistributedBatchSampler
from lib.evaluation.model_settings import ModelSettings
from lib.evaluation.validation import EvaluationData
from lib.training.tensorboard import TensorBoardLog
from utils.config.settings import Config
from utils.distributed.context import DistributedContext
from utils.distributed.signals import SignalRequests
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.checkpoint import save_best, save_checkpoint
from utils.storage.provenance import versions
from utils.storage.run_folder import BEST, LATEST


@dataclass
class Progress:
    """Where a run stands; what a checkpoint keeps beside weights, momentum and noise.

    Attributes:
        epoch: pass over the data, counted from 0.
        position: minibatches of the pass that are done, over all processes.
        totals: `MetricSums.totals` of the pass so far.
        seconds: time spent on the pass so far.
        best: the largest value of what `TRAIN.select` looks at, percent.
        history: rows of metrics.csv.
        gradient_sums: of `GradientNorms`, or None.
        images_hash: of the list of training images; "" in checkpoints that do not have it.
        best_ema: as `best`, of the averaged weights.
    """

    epoch: int = 0
    position: int = 0
    totals: list[float] = field(default_factory=lambda: [0.0, 0, 0, 0])
    seconds: float = 0.0
    best: float = -1.0
    history: list[list] = field(default_factory=list)
    gradient_sums: torch.Tensor | None = None
    images_hash: str = ""
    best_ema: float = -1.0

    def end_epoch(self) -> None:
        """The next epoch is to begin."""
        self.epoch, self.position = self.epoch + 1, 0
        self.totals, self.seconds = [0.0, 0, 0, 0], 0.0


@dataclass
class Run:
    """Everything that lives through the epochs of a training.

    Attributes:
        selection: the images that choose the best model.
        sums: of the epoch so far, in this process.
        epoch_started: when the epoch would have started without interruptions, monotonic seconds.
        resumed_at: when this process began with the epoch.
    """

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
    selection: EvaluationData
    norms: GradientNorms | None
    board: TensorBoardLog | None
    sums: MetricSums
    epoch_started: float = 0.0
    resumed_at: float = 0.0
    saved_at: float = field(default_factory=time.monotonic)
    drawn_at: float = field(default_factory=time.monotonic)

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
    """The epoch's `MetricSums.totals` over all processes; this synchronises with the device.

    Raises:
        UserError: the loss is not finite.
    """
    totals = run.context.sum(run.sums.totals())
    if not math.isfinite(totals[0]):
        where = f"epoch {run.progress.epoch + 1}, by minibatch {run.progress.position}"
        raise diverged(f"the loss is not finite in {where}", run.config.run_dir)
    return totals


def save(run: Run, best: Iterable[str] = ()) -> None:
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
    progress.gradient_sums = None if run.norms is None else run.norms.state()
    noise = run.context.gather_strided(trainer.noise)
    if run.context.is_main:
        content = network_content(run)
        for name in best:
            save_best(folder, content if name == BEST else averaged(run, content), name)
        training = {
            **vars(progress),
            "noise": noise,
            "scaler": trainer.scaler.state_dict(),
            "random_state": torch.get_rng_state(),
            **averaged_state(trainer.average),
        }
        optimizer = trainer.optimizer.state_dict()
        save_checkpoint(folder, {**content, "optimizer": optimizer, "training": training})
    run.saved_at = time.monotonic()


def network_content(run: Run) -> dict[str, Any]:
    """What a checkpoint keeps of the network, and how to use it.

    Raises:
        UserError: weights are not finite.
    """
    state_dict = cpu_copy(run.trainer.model.state_dict())
    if not all(bool(value.isfinite().all()) for value in state_dict.values()):
        where = f"epoch {run.progress.epoch + 1}"
        raise diverged(f"weights are not finite in {where}", run.config.run_dir)
    return {
        "epoch": run.progress.epoch,
        "arch": run.model_settings.arch,
        "best_prec1": run.progress.best,
        "model": vars(run.model_settings),
        "state_dict": state_dict,
        "config": run.config.as_dict(),
        "versions": versions(),
    }


def averaged(run: Run, content: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's content with the averaged weights."""
    assert run.trainer.average is not None
    network = run.trainer.average.module
    return {
        **content,
        "best_prec1": run.progress.best_ema,
        "state_dict": cpu_copy(network.state_dict()),
    }


def averaged_state(average: AveragedModel | None) -> dict[str, Any]:
    """What a checkpoint keeps of the average of the weights."""
    if average is None:
        return {}
    state = cpu_copy(average.module.state_dict())
    return {"ema": {"state_dict": state, "n_averaged": int(average.n_averaged)}}


def diverged(what: str, folder: Path) -> UserError:
    """The error of a training whose numbers are not finite any more, and its fix."""
    fix = "lower TRAIN.lr or use TRAIN.precision fp32"
    if (folder / LATEST).exists():
        what += f"; the last checkpoint in {folder} is intact"
        return UserError(f"{what}: {fix}, and --resume auto")
    return UserError(f"{what}, before anything was saved: {fix}, and start from scratch")


def cpu_copy(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors on the CPU in plain layout, whatever they were trained in."""
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}
