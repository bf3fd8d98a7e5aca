"""The training loop: minibatches, replays, progress, checkpoints, stops."""

import signal
import time
from collections.abc import Mapping
from functools import partial
from typing import NoReturn

from lib.algorithm.metrics import averages, has_top5
from lib.algorithm.protocols import METHODS
from lib.algorithm.training import TRAINING_STEP, draw_noise_
from lib.data.loader import on_device
from lib.training.checkpointing import Run, epoch_totals, save
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
    method, step = METHODS[config.TRAIN.method], TRAINING_STEP[config.TRAIN.method]
    trainer.model.train()
    what = f"epoch {progress.epoch + 1}/{config.passes}"
    bar = ProgressBar(run.logger, total, what, print_freq, done=progress.position)
    run.order.set_position(progress.epoch, progress.position)
    batches = on_device(run.loader, run.context.device, while_waiting=lambda: run.requests.stop)
    for number, (images, labels, _) in enumerate(batches, progress.position):
        answer_requests(run)  # those that came while the batch was waited for, too
        weight = run.order.weight(number)
        hook = None
        if run.norms is not None and number % config.TRAIN.gradient_every == 0:
            hook = partial(run.norms.sample, images, labels, weight)
        if method.draws_noise and config.ADV.random_init:
            key = config.RUN.seed, progress.epoch, number
            draw_noise_(trainer.noise, trainer.settings.eps, key, run.order.positions())
        if method.runs_pgd:
            run.context.copy_from_main_(trainer.model.buffers())
        for replay in range(config.ADV.n_repeats):
            for group in trainer.optimizer.param_groups:
                group["lr"] = lr_at(run, number, replay)
            loss, logits = step(trainer, images, labels, weight, hook)
            if weight:
                run.sums.update(loss, logits, labels, len(images))
        progress.position = number + 1
        shows = progress.position == total or progress.position % print_freq == 0
        bar.advance(detail=report_averages(run) if shows else "")
    answer_requests(run, at_end=True)
    bar.close()


def answer_requests(run: Run, at_end: bool = False) -> None:
    """Save and stop as signals have asked: all processes the same, whichever was signalled.

    Args:
        at_end: of an epoch, which is saved in any case.

    Raises:
        Interrupted: a signal asked to stop, and the state has been saved.
    """
    stop = run.context.max(run.requests.stop)
    if run.context.max(run.requests.save or checkpoint_is_due(run)) or stop or at_end:
        save(run)
        run.requests.save = False
    if stop:
        run.context.barrier()  # the first rank that ends has the others killed by torchrun
        stop_run(run, stop)


def lr_at(run: Run, number: int, replay: int) -> float:
    """The learning rate of an update of the current epoch."""
    repeats = run.config.ADV.n_repeats
    # In fast's release a second replay goes beyond the epoch.
    updates = run.order.batches_per_epoch() * run.config.epochs_per_pass
    return run.schedule(run.progress.epoch, (number * repeats + replay + 1) / updates)


def checkpoint_is_due(run: Run) -> bool:
    """Whether rank 0's clock asks for a checkpoint within the epoch."""
    minutes = (time.monotonic() - run.saved_at) / 60
    return run.context.is_main and minutes > run.config.TRAIN.checkpoint_minutes


def report_averages(run: Run) -> str:
    """Log the epoch's averages so far; returns them for a line of progress."""
    totals = epoch_totals(run)
    mean = averages(totals)
    rate = totals[3] / max(time.monotonic() - run.epoch_started, 1e-9)
    if run.board is not None:
        values = {f"train_{name}": value for name, value in mean.items()}
        run.board.add({**values, "lr": run.trainer.optimizer.param_groups[0]["lr"]}, run.step)
    return f"{describe_metrics(run, mean)} {rate:.1f} images/s"


def describe_metrics(run: Run, mean: Mapping[str, float]) -> str:
    """Loss, top-1, top-5 where it says anything, and what PGD leaves where it was run."""
    text = f"loss {mean['loss']:.4f} top-1 {mean['top1']:.2f} %"
    shows_top5 = has_top5(len(run.model_settings.classes or ()))
    text += f" top-5 {mean['top5']:.2f} %" * shows_top5
    return text + (f", PGD-10 top-1 {mean['pgd_top1']:.2f} %" if "pgd_top1" in mean else "")


def stop_run(run: Run, signum: int, state: str = "saved") -> NoReturn:
    """Say how to resume, and end."""
    name = signal.Signals(signum).name
    run.logger.info(f"stopped by {name}; {state}. Resume with --resume auto")
    raise Interrupted(signum, said=True)
