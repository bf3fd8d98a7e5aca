"""One training run: set up or resumed, epoch by epoch, saved so that nothing finished is lost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.gradient_norms import HEADER as NORMS_HEADER
from lib.algorithm.metrics import averages
from lib.algorithm.protocols import PROTOCOLS, PGDSpec, ThreatModel
from lib.evaluation.validation import adversarial_examples, validate, validate_pgd
from lib.training.gradient_table import write_rows
from lib.training.loop import epoch_lr, stop_run, train_one_epoch
from lib.training.setup import assemble, require_same_start, set_up
from lib.training.state import Run, begin_epoch, epoch_totals, save
from utils.config.ignored import ignored_settings
from utils.config.schema import Config
from utils.config.yaml_files import dump_yaml
from utils.distributed.context import DistributedContext
from utils.distributed.signals import SignalRequests
from utils.logging import Logger
from utils.storage.files import atomic_write, write_csv

HEADER = (
    "epoch",
    "lr",
    "train_loss",
    "train_top1",
    "train_top5",
    "val_loss",
    "val_top1",
    "val_top5",
    "val_pgd_top1",
    "images_per_second",
    "seconds",
)


def train(config: Config, context: DistributedContext) -> None:
    """Train as configured, from scratch or from a checkpoint; the worker of `main_free.py`.

    Raises:
        UserError: bad input, or a loss that is not finite.
        Interrupted: a signal asked to stop, and the state has been saved.
    """
    with SignalRequests().noted() as requests:
        logger = Logger(context.is_main)
        setup = context.run_and_share_errors(lambda: set_up(config, context, logger))
        with setup.lock:
            require_same_start(setup, context)
            if context.is_main:
                logger.write_to(config.run_dir / "log.txt")
                atomic_write(config.run_dir / "config.yml", dump_yaml(config))
            run = assemble(config, context, logger, setup, requests)
            announce(run)
            try:
                train_all_epochs(run)
            except RuntimeError:
                if not requests.stop:
                    raise
                # The same signal has ended a process that this one needs.
                stop_run(run, requests.stop, "the last checkpoint is whole")
            finally:
                run.close()


def announce(run: Run) -> None:
    """Say what is going to happen."""
    train, adv = run.config.TRAIN, run.config.ADV
    run.logger.heading(
        f"{run.model_settings.describe()} on {run.order.total} images of"
        f" {len(run.model_settings.classes or ())} classes"
    )
    run.logger.info(
        f"eps {255 * run.config.eps:g}/255, step {255 * run.config.step:g}/255,"
        f" {adv.n_repeats} replays,"
        f" {run.epochs} passes ({train.epochs} epochs / {adv.n_repeats}),"
        f" batch {run.order.batch_size}, {train.precision},"
        f" {run.context.world_size} x {run.context.device.type}; run folder {run.folder}"
    )
    for warning in ignored_settings(run.config, run.model_settings.hypersphere):
        run.logger.warning(warning)


def train_all_epochs(run: Run) -> None:
    """Train what is left, and draw it.

    Raises:
        Interrupted: a signal asked to stop, and the state has been saved.
    """
    while run.progress.epoch < run.epochs:
        begin_epoch(run)
        if run.progress.position < run.order.batches_per_epoch():
            train_one_epoch(run)
        finish_epoch(run)
    best = f"best {run.config.TRAIN.select} top-1 {run.progress.best:.2f} %"
    run.logger.heading(f"training done; {best}")
    draw(run)
    # It came with the last minibatch or since; nobody looks at requests after this.
    if stop := run.context.max(run.requests.stop):
        stop_run(run, stop)


def finish_epoch(run: Run) -> None:
    """Validate, write the epoch's rows, keep the best model, save."""
    progress, totals = run.progress, epoch_totals(run)
    training_seconds = time.monotonic() - run.epoch_started
    trained, clean, robust = averages(totals), *validate_epoch(run)
    score = clean["top1"] if robust is None else robust
    is_best = score > progress.best
    progress.best = max(score, progress.best)
    seconds = time.monotonic() - run.epoch_started
    rate = totals[3] / max(training_seconds, 1e-9)
    row: list[Any] = [progress.epoch + 1, epoch_lr(run), *trained.values(), *clean.values()]
    row += ["" if robust is None else robust, round(rate, 2), round(seconds, 2)]
    progress.history = [*progress.history, row]
    run.logger.info(
        f"epoch {progress.epoch + 1}/{run.epochs}: train loss {trained['loss']:.4f} top-1"
        f" {trained['top1']:.2f} %, clean validation loss {clean['loss']:.4f} top-1"
        f" {clean['top1']:.2f} % top-5 {clean['top5']:.2f} %"
        + ("" if robust is None else f", PGD-10 top-1 {robust:.2f} %")
        + (" (best)" if is_best else "")
    )
    write_tables(run)
    if time.monotonic() - run.drawn_at > 60:
        draw(run)
    progress.epoch, progress.position = progress.epoch + 1, 0
    progress.totals, progress.seconds = [0.0, 0, 0, 0], 0.0
    begin_epoch(run)
    save(run, is_best)


def validate_epoch(run: Run) -> tuple[dict[str, float], float | None]:
    """Clean averages, and with TRAIN.select pgd the robust top-1."""
    model, train = run.trainer.model, run.config.TRAIN
    # Batch-norm's statistics are rank 0's, which are what a checkpoint keeps.
    run.context.copy_from_main_(model.buffers())
    what = f"validation {run.progress.epoch + 1}/{run.epochs}"

    def track(batches: Iterable[DeviceBatch], total: int) -> Iterator[DeviceBatch]:
        for batch in run.logger.progress(batches, total, what, train.print_freq):
            if run.requests.stop:
                stop_run(run, run.requests.stop)  # saved before validation began
            yield batch

    clean = validate(model, run.validation, track)
    if train.select != "pgd":
        return clean, None
    return clean, validate_pgd(model, run.validation, *quick_attack(run), train.select_examples)


def quick_attack(run: Run) -> tuple[PGDSpec, ThreatModel]:
    """PGD-10, for looks at a model in training."""
    config = run.config
    spec = PGDSpec(10, config.ADV.pgd_attack[0][1])
    return spec, ThreatModel(config.eps, PROTOCOLS[config.EVAL.protocol], config.RUN.seed)


def write_tables(run: Run) -> None:
    """The epoch in metrics.csv, gradient_norms.csv and TensorBoard."""
    epoch, history = run.progress.epoch + 1, run.progress.history
    norms = [] if run.norms is None else run.norms.rows(epoch)
    if run.norms is not None and not norms:
        run.logger.warning("no gradient norms of this epoch: every one measured overflowed")
    if run.context.is_main:
        if run.norms is not None:
            write_rows(run.folder / "gradient_norms.csv", epoch, norms)
        write_csv(run.folder / "metrics.csv", HEADER, history)
    if run.board is not None:
        named = [dict(zip(NORMS_HEADER, entry, strict=True)) for entry in norms]
        run.board.epoch(dict(zip(HEADER, history[-1], strict=True)), named)
        images = adversarial_examples(run.trainer.model, run.validation, *quick_attack(run))
        run.board.images(images, epoch)


def draw(run: Run) -> None:
    """The figures, at the end and now and then before."""
    if run.context.is_main:
        from utils.figures.run import draw_run

        draw_run(run.folder)
        run.drawn_at = time.monotonic()
