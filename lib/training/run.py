"""One training run: set up or resumed, pass by pass, saved so that nothing finished is lost."""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from lib.algorithm.free_training import FreeSettings, FreeTrainer, Probe, make_noise, train_pass
from lib.algorithm.gradient_norms import HEADER as NORMS_HEADER
from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.metrics import MetricSums, averages
from lib.algorithm.protocols import PROTOCOLS, AttackSpec, ThreatModel
from lib.algorithm.schedules import lr_at, number_of_passes
from lib.data.datasets import ImageBatches, train_transform
from lib.data.loader import make_loader, on_device, share_of_workers
from lib.data.samplers import GlobalBatches
from lib.evaluation.validation import (
    EvaluationData,
    adversarial_examples,
    validate,
    validate_pgd,
)
from lib.training.gradient_table import write_rows
from lib.training.setup import Setup, make_network, make_optimizer, set_up
from lib.training.state import Progress, diverged, restore_state, save_state
from lib.training.tensorboard import TensorBoardLog
from models.resnet import ResNet
from utils.config.merge import dump_yaml
from utils.distributed.context import DistributedContext
from utils.distributed.signals import SignalRequests, leave_to_parent
from utils.errors import Interrupted, SharedUserError
from utils.logging import Logger, ProgressBar
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


def train(config: Mapping[str, Any], context: DistributedContext) -> None:
    """Train as configured, from the start or from a checkpoint; the worker of `main_free.py`.

    Raises:
        UserError: bad input, or a loss that is not finite.
        Interrupted: a signal asked to stop, and the state has been saved.
    """
    with SignalRequests().noted() as requests:
        train_until_asked(config, context, requests)


def train_until_asked(
    config: Mapping[str, Any], context: DistributedContext, requests: SignalRequests
) -> None:
    """Train to the end, or until a signal asks to stop."""
    logger = Logger(context.is_main)
    setup = context.run_and_share_errors(lambda: set_up(config, context, logger))
    with setup.lock:
        require_same_start(setup, context)
        folder = Path(config.DERIVED.run_dir)
        if context.is_main:
            logger.write_to(folder / "log.txt")
            atomic_write(folder / "config.yml", dump_yaml(config))
        run = TrainingRun(config, context, logger, setup, requests)
        run.announce()
        try:
            while run.progress.epoch < run.passes:
                run.one_pass()
            run.finish()
        except RuntimeError:
            if not requests.stop:
                raise
            # The same signal has ended a process that this one needs.
            run.end_early(requests.stop, "the last checkpoint is whole")
        finally:
            run.close()


def require_same_start(setup: Setup, context: DistributedContext) -> None:
    """All processes must read the same images and go on from the same minibatch.

    Raises:
        UserError: a machine sees something else under the same path.
    """
    images = hashlib.sha256("\n".join((*setup.train.files, *setup.val.files)).encode()).hexdigest()
    training = (setup.resumed.training if setup.resumed else None) or {}
    seen = context.gather((images, training.get("epoch"), training.get("position")))
    for rank, other in enumerate(seen):
        if other != seen[0]:
            what = "other images" if other[0] != seen[0][0] else "another checkpoint"
            raise SharedUserError(
                f"process {rank} sees {what} than process 0; all machines need the same"
                " files, on a shared disk"
            )


class TrainingRun:
    """Everything that lives through the passes of a run."""

    def __init__(
        self,
        config: Mapping[str, Any],
        context: DistributedContext,
        logger: Logger,
        setup: Setup,
        requests: SignalRequests,
    ) -> None:
        self.config, self.context, self.logger = config, context, logger
        self.settings, self.requests = setup.settings, requests
        self.folder = Path(config.DERIVED.run_dir)
        self.passes = number_of_passes(config.TRAIN.epochs, config.ADV.n_repeats)
        self.progress = Progress(epoch=config.TRAIN.start_epoch)
        self.trainer = self.make_learner(setup.model)
        if setup.resumed is not None:
            self.progress = restore_state(
                setup.resumed, self.trainer, context, self.progress.epoch, logger
            )
        self.norms = self.make_norms()
        self.make_loaders(setup)
        board = config.OPTIONS.tensorboard and context.is_main
        self.board = TensorBoardLog(self.folder, self.progress.epoch + 1) if board else None
        self.saved_at = self.drawn_at = time.monotonic()

    def make_learner(self, model: ResNet) -> FreeTrainer:
        """Model, optimizer and noise on the device."""
        config, context = self.config, self.context
        if config.TRAIN.sync_bn and context.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model = model.to(context.device, memory_format=torch.channels_last)
        torch.backends.cudnn.benchmark = True  # all minibatches have one size; CUDA alone heeds it
        settings = FreeSettings(
            eps=config.DERIVED.eps,
            step=config.DERIVED.fgsm_step,
            n_repeats=config.ADV.n_repeats,
            scaled_margin=self.settings.scaled_margin,
            precision=config.TRAIN.precision,
        )
        share = config.DATA.batch_size // context.world_size
        return FreeTrainer(
            model,
            make_optimizer(model, config, context.device.type),
            make_noise(share, config.DATA.crop_size, context.device),
            settings,
            make_network(model, config, context),
        )

    def make_norms(self) -> GradientNorms | None:
        """The gradient probe, if asked for."""
        if not self.config.OPTIONS.print_gradients:
            return None
        trainer, sums = self.trainer, self.progress.gradient_sums
        average_, scaler = self.context.average_, trainer.scaler
        return GradientNorms(trainer.model, trainer.loss, average_, sums, scaler)

    def make_loaders(self, setup: Setup) -> None:
        """Loaders of both splits."""
        data, seed = self.config.DATA, self.config.RUN.seed
        workers = share_of_workers(data.workers, self.context.world_size)
        self.order = GlobalBatches(
            len(setup.train.files),
            data.batch_size,
            self.context.rank,
            self.context.world_size,
            seed,
        )
        crop = train_transform(data.crop_size, data.min_area)
        images = ImageBatches(setup.train, crop, data.crop_size, seed, data.flip)
        self.loader: Any = make_loader(
            images, self.order, workers, self.context.device, leave_to_parent
        )
        share = max(1, data.batch_size // self.context.world_size)
        self.validation = EvaluationData(
            setup.val, data.img_size, data.crop_size, share, workers, self.context
        )

    def announce(self) -> None:
        """Say what is going to happen."""
        train, adv, derived = self.config.TRAIN, self.config.ADV, self.config.DERIVED
        self.logger.heading(
            f"{self.settings.describe()} on {self.order.total} images of"
            f" {len(self.settings.classes)} classes"
        )
        self.logger.info(
            f"eps {255 * derived.eps:g}/255, step {255 * derived.fgsm_step:g}/255,"
            f" {adv.n_repeats} replays,"
            f" {self.passes} passes ({train.epochs} epochs / {adv.n_repeats}),"
            f" batch {self.order.batch_size}, {train.precision},"
            f" {self.context.world_size} x {self.context.device.type}; run folder {self.folder}"
        )

    def one_pass(self) -> None:
        """Train on the rest of a pass, validate, keep the best, save."""
        progress, started = self.progress, time.monotonic() - self.progress.seconds
        self.started = started
        lr = lr_at(progress.epoch, self.config.TRAIN.lr, self.config.ADV.n_repeats)
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = lr
        totals = progress.totals if self.context.is_main else None
        self.sums = MetricSums(self.context.device, totals)
        self.order.set_position(progress.epoch, progress.position)
        what = f"epoch {progress.epoch + 1}/{self.passes}"
        self.bar = ProgressBar(
            self.logger, self.order.batches_per_epoch(), what, self.config.TRAIN.print_freq
        )
        self.bar.advance(progress.position, skipped=True)
        if progress.position < self.order.batches_per_epoch():
            train_pass(
                self.trainer,
                on_device(self.loader, self.context.device),
                self.sums,
                weight_of=self.weight_of,
                probe_of=self.probe_of,
                after=self.after_minibatch,
                start=progress.position,
            )
            self.save()  # validation may be interrupted, too
        self.bar.close()
        self.finish_pass(lr)

    def weight_of(self, number: int, images_here: int) -> float:
        """The factor that makes DDP's average of means the mean over the global minibatch."""
        total, world = self.order.images_in(number), self.context.world_size
        if len(range(self.context.rank, total, world)) == 0:
            return 0.0  # a borrowed image, see GlobalBatches
        return images_here * world / total

    def probe_of(self, number: int) -> Probe | None:
        """The gradient probe on every N-th minibatch."""
        if self.norms is None or number % self.config.TRAIN.gradient_every:
            return None
        return self.norms.probe

    def after_minibatch(self, position: int) -> None:
        """Print, save or stop between two minibatches; all processes do the same."""
        self.progress.position = position
        due = time.monotonic() - self.saved_at > 60 * self.config.TRAIN.checkpoint_minutes
        stop = self.context.max(self.requests.stop)
        save = self.context.max(self.requests.save or (due and self.context.is_main))
        last = position == self.order.batches_per_epoch()
        if position % self.config.TRAIN.print_freq == 0 or last:
            detail = self.describe_sums()
        else:
            detail = ""
        self.bar.advance(detail=detail)
        if save or stop:
            self.save()
            self.requests.save = False
        if stop:
            self.end_early(stop)

    def finish(self) -> None:
        """Say that training is done, and draw it."""
        best = f"best {self.config.TRAIN.select} top-1 {self.progress.best:.2f} %"
        self.logger.heading(f"training done; {best}")
        self.draw(final=True)
        # It came with the last minibatch or since; nobody looks at requests after this.
        if stop := self.context.max(self.requests.stop):
            self.end_early(stop)

    def end_early(self, signum: int, state: str = "saved") -> NoReturn:
        """Say how to go on, and end."""
        name = signal.Signals(signum).name
        self.logger.info(f"stopped by {name}; {state}. Go on with --resume auto")
        raise Interrupted(signum)

    def read_sums(self) -> list[float]:
        """Totals over all processes; this synchronises with the device.

        Raises:
            UserError: the loss is not finite.
        """
        totals = self.context.sum(self.sums.totals())
        if not math.isfinite(totals[0]):
            where = f"epoch {self.progress.epoch + 1}, by minibatch {self.progress.position}"
            raise diverged(f"the loss is not finite in {where}", self.folder)
        return totals

    def describe_sums(self) -> str:
        """The pass's averages so far, for a line of progress."""
        totals = self.read_sums()
        mean = averages(totals)
        rate = totals[3] / max(time.monotonic() - self.started, 1e-9)
        return (
            f"loss {mean['loss']:.4f} top-1 {mean['top1']:.2f} % top-5 {mean['top5']:.2f} %"
            f" {rate:.1f} images/s"
        )

    def finish_pass(self, lr: float) -> None:
        """Validate, write the epoch's rows, keep the best model, save."""
        progress = self.progress
        totals = self.read_sums()
        trained = averages(totals)
        training_seconds = time.monotonic() - self.started
        clean, robust = self.validate()
        score = robust if self.config.TRAIN.select == "pgd" else clean["top1"]
        is_best = score > progress.best
        progress.best = max(score, progress.best)
        seconds = time.monotonic() - self.started
        rate = totals[3] / max(training_seconds, 1e-9)
        row = [progress.epoch + 1, lr, *trained.values(), *clean.values()]
        row += ["" if robust is None else robust, round(rate, 2), round(seconds, 2)]
        progress.history = [*progress.history, row]
        self.logger.info(
            f"epoch {progress.epoch + 1}/{self.passes}: train loss {trained['loss']:.4f} top-1"
            f" {trained['top1']:.2f} %, clean validation loss {clean['loss']:.4f} top-1"
            f" {clean['top1']:.2f} % top-5 {clean['top5']:.2f} %"
            + ("" if robust is None else f", PGD-10 top-1 {robust:.2f} %")
            + (" (best)" if is_best else "")
        )
        gradients = [] if self.norms is None else self.norms.rows(progress.epoch + 1)
        if self.norms is not None and not gradients:
            self.logger.warning("no gradient norms of this epoch: every one measured overflowed")
        self.write_tables(gradients)
        self.write_board(row, gradients)
        self.draw()
        progress.epoch, progress.position = progress.epoch + 1, 0
        progress.totals, progress.seconds = [0.0, 0, 0, 0], 0.0
        self.sums = MetricSums(self.context.device)
        self.started = time.monotonic()
        self.save(is_best)

    def validate(self) -> tuple[dict[str, float], float | None]:
        """Clean averages, and with TRAIN.select pgd the robust top-1."""
        model, config = self.trainer.model, self.config
        # Batch-norm's statistics are rank 0's, which are what a checkpoint keeps.
        self.context.copy_from_main_(model.buffers())
        bar = f"validation {self.progress.epoch + 1}/{self.passes}"

        def track(batches: Any, total: int) -> Any:
            for batch in self.logger.track(batches, total, bar, config.TRAIN.print_freq):
                if self.requests.stop:
                    self.end_early(self.requests.stop)  # saved before validation began
                yield batch

        clean = validate(model, self.validation, track)
        if config.TRAIN.select != "pgd":
            return clean, None
        examples = config.TRAIN.select_examples
        return clean, validate_pgd(model, self.validation, *self.quick_attack(), examples)

    def quick_attack(self) -> tuple[AttackSpec, ThreatModel]:
        """PGD-10, for looks at a model in training."""
        config = self.config
        spec = AttackSpec("pgd", 10, config.ADV.pgd_attack[0][1])
        return spec, ThreatModel(
            config.DERIVED.eps, PROTOCOLS[config.EVAL.protocol], config.RUN.seed
        )

    def write_tables(self, gradients: list[list]) -> None:
        """metrics.csv and gradient_norms.csv, whole."""
        if not self.context.is_main:
            return
        if self.norms is not None:
            path = self.folder / "gradient_norms.csv"
            write_rows(path, self.progress.epoch + 1, gradients)
        write_csv(self.folder / "metrics.csv", HEADER, self.progress.history)

    def write_board(self, row: list, gradients: list[list]) -> None:
        """The epoch for TensorBoard, if asked for."""
        if self.board is None:
            return
        named = [dict(zip(NORMS_HEADER, entry, strict=True)) for entry in gradients]
        self.board.epoch(dict(zip(HEADER, row, strict=True)), named)
        images = adversarial_examples(self.trainer.model, self.validation, *self.quick_attack())
        self.board.images(images, self.progress.epoch + 1)

    def close(self) -> None:
        """End the reading processes and the logs."""
        self.loader = None
        if self.board is not None:
            self.board.close()

    def draw(self, final: bool = False) -> None:
        """The figures, at the end and now and then before."""
        if not self.context.is_main or not (final or time.monotonic() - self.drawn_at > 60):
            return
        from utils.figures.run import draw_run

        draw_run(self.folder)
        self.drawn_at = time.monotonic()

    def save(self, best: bool = False) -> None:
        """Write the whole state, and before it model_best; every process takes part.

        Raises:
            UserError: loss or weights are not finite, or the disk is full; the last checkpoint
                stays.
        """
        self.progress.totals = self.read_sums()
        self.progress.seconds = time.monotonic() - self.started
        sums = None if self.norms is None else self.norms.state()
        save_state(
            self.folder,
            self.config,
            self.settings,
            self.trainer,
            replace(self.progress, gradient_sums=sums),
            self.context,
            best,
        )
        self.saved_at = time.monotonic()
