"""One training run: set up or resumed, epoch by epoch, saved so that nothing finished is lost."""

import time

import torch

from lib.algorithm.protocols import METHODS
from lib.training.checkpointing import Run, begin_epoch
from lib.training.epoch_end import begin_selection, finish_epoch
from lib.training.loop import stop_run, train_one_epoch
from lib.training.setup import assemble
from lib.training.start import find_start, read_images, require_same_start
from utils.config.load import dump_yaml
from utils.config.rules import ignored_settings
from utils.config.settings import Config
from utils.distributed.context import DistributedContext
from utils.distributed.signals import SIGNALS, SignalRequests, handling
from utils.logging import Logger
from utils.storage.files import atomic_write
from utils.text import counted


def train(config: Config, context: DistributedContext) -> None:
    """Train as configured, from scratch or from a checkpoint; the worker of `main_free.py`.

    Raises:
        UserError: bad input, or a loss that is not finite.
        Interrupted: a signal asked to stop, and the state has been saved.
    """
    requests = SignalRequests()
    with handling(SIGNALS, requests.note):
        logger = Logger(context.is_main)
        images = context.from_main(lambda: read_images(config))
        start = context.run_and_share_errors(lambda: find_start(config, context, logger, images))
        with start.lock:
            require_same_start(images, start, context)
            if context.is_main:
                logger.write_to(config.run_dir / "log.txt")
                text = f"# {config.OPTIONS.command}\n{dump_yaml(config)}"
                atomic_write(config.run_dir / "config.yml", text)
            run = assemble(config, context, logger, requests, images, start)
            announce(run)
            for note in (*images.train.notes, *images.val.notes):
                logger.warning(note)
            try:
                begin_selection(run)
                train_all_epochs(run)
            except RuntimeError:
                if not requests.stop:
                    raise
                # The same signal has ended a process that this one needs.
                stop_run(run, requests.stop, "the last checkpoint is intact")
            finally:
                run.close()


def announce(run: Run) -> None:
    """Say what is going to happen."""
    config, count = run.config, len(run.model_settings.classes or ())
    run.logger.heading(
        f"{run.model_settings.describe()} on {run.order.total} images of {count} classes"
    )
    run.logger.info(
        f"{describe_method(config)}, batch {run.order.batch_size}, {config.TRAIN.precision},"
        f"{' compiled,' * bool(run.progress.compiled)} {run.context.world_size} x"
        f" {run.context.device.type}; run folder {config.run_dir}"
    )
    for warning in ignored_settings(run.config, run.model_settings.hypersphere):
        run.logger.warning(warning)


def describe_method(config: Config) -> str:
    """`free training, eps 4/255, step 4/255, 4 replays, 23 epochs of the data` and more."""
    method, repeats = METHODS[config.TRAIN.method], config.ADV.n_repeats
    text = f"{config.TRAIN.method} training"
    if method.adversarial:
        text += f", eps {255 * config.eps:g}/255, step {255 * config.step:g}/255"
    if method.runs_pgd:
        text += f", {counted(config.ADV.train_steps, 'step')} of PGD"
    if repeats > 1:
        text += f", {repeats} replays"
    epochs = counted(config.passes, "epoch")
    return f"{text}, {epochs} of the data (TRAIN.epochs {config.TRAIN.epochs})"


def train_all_epochs(run: Run) -> None:
    """Train what is left, and draw it."""
    while run.progress.epoch < run.config.passes:
        begin_epoch(run)
        if run.progress.position < run.order.batches_per_epoch():
            torch.backends.cudnn.benchmark = True  # worth it: all minibatches have one shape
            train_one_epoch(run)
            torch.backends.cudnn.benchmark = False
        finish_epoch(run)
        if time.monotonic() - run.drawn_at > 60:
            draw(run)
    best = f"best {run.progress.best_of['TRAIN.select']} top-1 {run.progress.best:.2f} %"
    run.logger.heading(f"training done; {best}")
    draw(run)
    # It came with the last minibatch or since; nobody looks at requests after this.
    if stop := run.context.max(run.requests.stop):
        stop_run(run, stop)


def draw(run: Run) -> None:
    """The figures, at the end and now and then before."""
    if run.context.is_main:
        from utils.figures.training import draw_run

        draw_run(run.config.run_dir)
        run.drawn_at = time.monotonic()
