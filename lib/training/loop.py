"""The training loop: minibatches, replays, progress, checkpoints, stops."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import NoReturn

from lib.algorithm.free_training import free_step
from lib.algorithm.metrics import averages
from lib.algorithm.schedules import lr_at
from lib.data.loader import on_device
from lib.training.state import Run, epoch_totals, save
from utils.errors import Interrupted
from utils.logging import ProgressBar


def train_one_epoch(run: Run) -> None:
    """Train on the rest of an epoch's minibatches, each replayed `ADV.n_repeats` times.

    Raises:
        UserError: the loss is not finite.
        Interrupted: a signal asked to stop, and the state has been saved.
    """
    trainer, progress, config = run.trainer, run.progress, run.config
    total, print_freq = run.order.batches_per_epoch(), config.TRAIN.print_freq
    for group in trainer.optimizer.param_groups:
        group["lr"] = epoch_lr(run)
    trainer.model.train()
    what = f"epoch {progress.epoch + 1}/{run.epochs}"
    bar = ProgressBar(run.logger, total, what, print_freq)
    bar.advance(progress.position, skipped=True)
    run.order.set_position(progress.epoch, progress.position)
    batches = on_device(run.loader, run.context.device)
    for number, (images, labels, _) in enumerate(batches, progress.position):
        weight = run.order.weight(number)
        hook = None
        if run.norms is not None and number % config.TRAIN.gradient_every == 0:
            hook = partial(run.norms.sample, images, labels, weight)
        for _ in range(config.ADV.n_repeats):
            loss, logits = free_step(trainer, images, labels, weight, hook)
            if weight:
                run.sums.update(loss, logits, labels, len(images))
        progress.position = number + 1
        is_last = progress.position == total
        shows = is_last or progress.position % print_freq == 0
        bar.advance(detail=describe_averages(run) if shows else "")
        # All processes do the same, whichever of them was signalled.
        stop = run.context.max(run.requests.stop)
        if run.context.max(run.requests.save or checkpoint_is_due(run)) or stop or is_last:
            save(run)
            run.requests.save = False
        if stop:
            stop_run(run, stop)
    bar.close()


def epoch_lr(run: Run) -> float:
    """The learning rate of the current epoch."""
    return lr_at(run.progress.epoch, run.config.TRAIN.lr, run.config.ADV.n_repeats)


def checkpoint_is_due(run: Run) -> bool:
    """Whether rank 0's clock asks for a checkpoint within the epoch."""
    minutes = (time.monotonic() - run.saved_at) / 60
    return run.context.is_main and minutes > run.config.TRAIN.checkpoint_minutes


def describe_averages(run: Run) -> str:
    """The epoch's averages so far, for a line of progress."""
    totals = epoch_totals(run)
    mean = averages(totals)
    rate = totals[3] / max(time.monotonic() - run.epoch_started, 1e-9)
    return (
        f"loss {mean['loss']:.4f} top-1 {mean['top1']:.2f} % top-5 {mean['top5']:.2f} %"
        f" {rate:.1f} images/s"
    )


def stop_run(run: Run, signum: int, state: str = "saved") -> NoReturn:
    """Say how to resume, and end."""
    name = signal.Signals(signum).name
    run.logger.info(f"stopped by {name}; {state}. Go on with --resume auto")
    raise Interrupted(signum)
