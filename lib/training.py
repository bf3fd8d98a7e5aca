"""One training run: set up or resumed, pass by pass, saved so that nothing finished is lost."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lib.attacks import Threat
from lib.data import (
    GlobalBatches,
    ImageBatches,
    make_loader,
    on_device,
    share_of_workers,
    train_transform,
)
from lib.free_training import FreeLearner, FreeSettings, Probe, make_noise, train_pass
from lib.gradient_norms import GradientNorms, write_rows
from lib.image_folder import ImageTree, read_split, require_same_classes
from lib.model_setup import ModelSettings, model_of, new_model, settings_from, settings_of
from lib.resumption import find_resumption, require_same_run
from lib.schedules import lr_at, number_of_passes
from lib.validation import EvaluationData, validate, validate_pgd
from models.resnet import ResNet
from utils.attack_list import AttackSpec
from utils.checkpoint import Checkpoint, save_best, save_checkpoint
from utils.config import dump_yaml, settings_only
from utils.distributed import Ranks
from utils.errors import Interrupted, UserError
from utils.files import atomic_write, make_folder, write_csv
from utils.logger import Logger, ProgressBar
from utils.metrics import MetricSums, averages
from utils.provenance import versions
from utils.run_folder import claim
from utils.signals import SignalRequests

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
    """

    epoch: int = 0
    position: int = 0
    totals: list[float] = field(default_factory=lambda: [0.0, 0, 0, 0])
    seconds: float = 0.0
    best: float = -1.0
    history: list[list] = field(default_factory=list)
    gradient_sums: torch.Tensor | None = None


@dataclass(frozen=True)
class Setup:
    """What a run starts from."""

    train: ImageTree
    val: ImageTree
    settings: ModelSettings
    model: ResNet
    resumed: Checkpoint | None


def train(config: Mapping[str, Any], ranks: Ranks) -> None:
    """Train as configured, from the start or from a checkpoint; the worker of `main_free.py`.

    Raises:
        UserError: bad input, or a loss that is not finite.
        Interrupted: a signal asked to stop, and the state has been saved.
    """
    requests = SignalRequests().install()
    logger = Logger(ranks.is_main)
    setup = ranks.together(lambda: set_up(config, ranks, logger))
    folder = Path(config.DERIVED.run_dir)
    if ranks.is_main:
        logger.write_to(folder / "log.txt")
        atomic_write(folder / "config.yml", dump_yaml(config))
    run = TrainingRun(config, ranks, logger, setup, requests)
    run.announce()
    try:
        while run.progress.epoch < run.passes:
            run.one_pass()
    finally:
        run.loader = None  # ends its workers
    logger.heading(f"training done; best {config.TRAIN.select} top-1 {run.progress.best:.2f} %")
    run.draw(final=True)


def set_up(config: Mapping[str, Any], ranks: Ranks, logger: Logger) -> Setup:
    """Read the data's file lists and the weights, and claim the run folder, before any work.

    Raises:
        UserError: anything that would stop the run later.
    """
    if config.DATA.batch_size % ranks.world_size:
        raise UserError(
            f"DATA.batch_size {config.DATA.batch_size} is the batch over all processes and does"
            f" not divide by {ranks.world_size}; change it or --nproc"
        )
    if config.TRAIN.sync_bn and ranks.device.type != "cuda":
        raise UserError("TRAIN.sync_bn needs CUDA; leave it out")
    data = config.OPTIONS.data or config.DATA.imagenet
    train_tree, val_tree = read_split(data, "train"), read_split(data, "val")
    require_same_classes(train_tree, val_tree)
    require_statistics(len(train_tree.files), config, ranks.world_size)
    folder = Path(config.DERIVED.run_dir)
    resumed = find_resumption(config, folder, logger)
    if resumed is None:
        settings = settings_from(config, train_tree.classes)
        model = new_model(settings, config.RUN.seed, config.OPTIONS.pretrained)
    else:
        settings = require_same_run(config, resumed, train_tree.classes, logger)
        model = model_of(resumed, settings)
    if ranks.is_main:
        here = resumed is not None and Path(resumed.path).parent == folder
        claim(folder, here, config.OPTIONS.overwrite)
        make_folder(folder)
    return Setup(train_tree, val_tree, settings, model, resumed)


def require_statistics(total: int, config: Mapping[str, Any], world_size: int) -> None:
    """Batch-norm needs two values a channel; small crops leave one pixel an image at the end.

    Raises:
        UserError: some minibatch would have a single image in a process.
    """
    batch = config.DATA.batch_size
    sizes = {min(batch, total), total % batch or batch}
    smallest = min(max(1, size // world_size) for size in sizes)
    if config.DATA.crop_size <= 32 and smallest == 1:
        raise UserError(
            f"with {total} images, DATA.batch_size {batch} and {world_size} processes, a minibatch"
            f" has a single image, and at crop_size {config.DATA.crop_size} batch-norm needs two;"
            " choose another DATA.batch_size"
        )


def make_network(model: ResNet, config: Mapping[str, Any], ranks: Ranks) -> nn.Module:
    """What forward passes of training go through: the model, in DDP and compiled as asked."""
    network: Any = model
    if ranks.world_size > 1:
        ids = [ranks.device.index] if ranks.device.type == "cuda" else None
        # Buffers follow rank 0 at every forward pass, as in the published DataParallel.
        network = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    return torch.compile(network) if config.TRAIN.compile else network


def make_optimizer(model: nn.Module, config: Mapping[str, Any], kind: str) -> torch.optim.SGD:
    """SGD as published; one fused kernel where the device has it."""
    train = config.TRAIN
    return torch.optim.SGD(
        model.parameters(),
        train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        fused=True if kind in ("cpu", "cuda") else None,
    )


class TrainingRun:
    """Everything that lives through the passes of a run."""

    def __init__(
        self,
        config: Mapping[str, Any],
        ranks: Ranks,
        logger: Logger,
        setup: Setup,
        requests: SignalRequests,
    ) -> None:
        self.config, self.ranks, self.logger = config, ranks, logger
        self.settings, self.requests = setup.settings, requests
        self.folder = Path(config.DERIVED.run_dir)
        self.passes = number_of_passes(config.TRAIN.epochs, config.ADV.n_repeats)
        self.progress = Progress(epoch=config.TRAIN.start_epoch)
        self.learner = self.make_learner(setup.model)
        if setup.resumed is not None:
            self.restore(setup.resumed)
        self.norms = self.make_norms()
        self.make_loaders(setup)
        self.saved_at = self.drawn_at = time.monotonic()

    def make_learner(self, model: ResNet) -> FreeLearner:
        """Model, optimizer and noise on the device."""
        config, ranks = self.config, self.ranks
        if config.TRAIN.sync_bn and ranks.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model = model.to(ranks.device, memory_format=torch.channels_last)
        settings = FreeSettings(
            eps=config.DERIVED.eps,
            step=config.DERIVED.fgsm_step,
            n_repeats=config.ADV.n_repeats,
            scaled_margin=self.settings.scaled_margin,
            precision=config.TRAIN.precision,
        )
        share = config.DATA.batch_size // ranks.world_size
        return FreeLearner(
            model,
            make_optimizer(model, config, ranks.device.type),
            make_noise(share, config.DATA.crop_size, ranks.device),
            settings,
            make_network(model, config, ranks),
        )

    def make_norms(self) -> GradientNorms | None:
        """The gradient probe, if asked for."""
        if not self.config.OPTIONS.print_gradients:
            return None
        sums = self.progress.gradient_sums
        return GradientNorms(self.learner.model, self.learner.loss, self.ranks.average_, sums)

    def make_loaders(self, setup: Setup) -> None:
        """Loaders of both splits."""
        data, seed = self.config.DATA, self.config.RUN.seed
        workers = share_of_workers(data.workers, self.ranks.world_size)
        self.order = GlobalBatches(
            len(setup.train.files), data.batch_size, self.ranks.rank, self.ranks.world_size, seed
        )
        images = ImageBatches(setup.train, train_transform(data.crop_size), data.crop_size, seed)
        self.loader: Any = make_loader(images, self.order, workers, self.ranks.device)
        share = max(1, data.batch_size // self.ranks.world_size)
        self.validation = EvaluationData(
            setup.val, data.img_size, data.crop_size, share, workers, self.ranks
        )

    def announce(self) -> None:
        """Say what is going to happen."""
        train, adv = self.config.TRAIN, self.config.ADV
        self.logger.heading(
            f"{self.settings.describe()} on {self.order.total} images of"
            f" {len(self.settings.classes)} classes"
        )
        self.logger.info(
            f"eps {adv.clip_eps:g}/255, step {adv.fgsm_step:g}/255, {adv.n_repeats} replays,"
            f" {self.passes} passes ({train.epochs} epochs / {adv.n_repeats}),"
            f" batch {self.order.batch_size}, {train.precision},"
            f" {self.ranks.world_size} x {self.ranks.device.type}; run folder {self.folder}"
        )

    def one_pass(self) -> None:
        """Train on the rest of a pass, validate, keep the best, save."""
        progress, started = self.progress, time.monotonic() - self.progress.seconds
        self.started = started
        lr = lr_at(progress.epoch, self.config.TRAIN.lr, self.config.ADV.n_repeats)
        for group in self.learner.optimizer.param_groups:
            group["lr"] = lr
        totals = progress.totals if self.ranks.is_main else None
        self.sums = MetricSums(self.ranks.device, totals)
        self.order.set_position(progress.epoch, progress.position)
        what = f"epoch {progress.epoch + 1}/{self.passes}"
        self.bar = ProgressBar(
            self.logger, self.order.batches_per_epoch(), what, self.config.TRAIN.print_freq
        )
        self.bar.advance(progress.position, skipped=True)
        if progress.position < self.order.batches_per_epoch():
            train_pass(
                self.learner,
                on_device(self.loader, self.ranks.device),
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
        total, world = self.order.images_in(number), self.ranks.world_size
        if len(range(self.ranks.rank, total, world)) == 0:
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
        stop = self.ranks.max(self.requests.stop)
        save = self.ranks.max(self.requests.save or (due and self.ranks.is_main))
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
            self.logger.info(f"stopped by signal {stop}; saved. Go on with --resume auto")
            raise Interrupted(stop)

    def read_sums(self) -> list[float]:
        """Totals over all processes; this synchronises with the device.

        Raises:
            UserError: the loss is not finite.
        """
        totals = self.ranks.sum(self.sums.totals())
        if not math.isfinite(totals[0]):
            raise UserError(
                f"the loss is not finite in epoch {self.progress.epoch + 1}, by minibatch"
                f" {self.progress.position}; the last checkpoint in {self.folder} is good: lower"
                " TRAIN.lr or use TRAIN.precision fp32, and --resume auto"
            )
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
        self.write_tables()
        self.draw()
        progress.epoch, progress.position = progress.epoch + 1, 0
        progress.totals, progress.seconds = [0.0, 0, 0, 0], 0.0
        self.sums = MetricSums(self.ranks.device)
        self.started = time.monotonic()
        if is_best and self.ranks.is_main:
            save_best(self.folder, self.content())
        self.save()

    def validate(self) -> tuple[dict[str, float], float | None]:
        """Clean averages, and with TRAIN.select pgd the robust top-1."""
        model, config = self.learner.model, self.config
        bar = f"validation {self.progress.epoch + 1}/{self.passes}"

        def track(batches: Any, total: int) -> Any:
            for batch in self.logger.track(batches, total, bar, config.TRAIN.print_freq):
                if self.requests.stop:
                    raise Interrupted(self.requests.stop)  # saved before validation began
                yield batch

        clean = validate(model, self.validation, track)
        if config.TRAIN.select != "pgd":
            return clean, None
        spec = AttackSpec("pgd", 10, config.ADV.pgd_attack[0][1])
        threat = Threat(config.DERIVED.eps, config.EVAL.protocol, config.RUN.seed)
        examples = config.TRAIN.select_examples
        return clean, validate_pgd(model, self.validation, spec, threat, examples)

    def write_tables(self) -> None:
        """metrics.csv and gradient_norms.csv, whole."""
        epoch = self.progress.epoch + 1
        if self.norms is not None:
            rows = self.norms.rows(epoch)
            if self.ranks.is_main:
                write_rows(self.folder / "gradient_norms.csv", epoch, rows)
        if self.ranks.is_main:
            write_csv(self.folder / "metrics.csv", HEADER, self.progress.history)

    def draw(self, final: bool = False) -> None:
        """The figures, at the end and now and then before."""
        if not self.ranks.is_main or not (final or time.monotonic() - self.drawn_at > 60):
            return
        from utils.run_figures import draw_run

        draw_run(self.folder, self.norms is not None)
        self.drawn_at = time.monotonic()

    def content(self) -> dict[str, Any]:
        """What model_best keeps: the network and how to use it."""
        progress = self.progress
        return {
            "epoch": progress.epoch,
            "arch": self.settings.arch,
            "best_prec1": progress.best,
            "model": self.settings.as_dict(),
            "state_dict": cpu_copy(self.learner.model.state_dict()),
            "config": settings_only(self.config),
            "versions": versions(),
        }

    def save(self) -> None:
        """Write the whole state; every process takes part, rank 0 writes.

        Raises:
            UserError: loss or weights are not finite, or the disk is full; the last checkpoint
                stays.
        """
        progress = self.progress
        progress.totals = self.read_sums()
        progress.seconds = time.monotonic() - self.started
        noise = self.ranks.interleave(self.learner.noise)
        if not self.ranks.is_main:
            return
        content = self.content()
        if not all(bool(v.isfinite().all()) for v in content["state_dict"].values()):
            raise UserError(
                f"weights are not finite in epoch {progress.epoch + 1}; the last checkpoint in"
                f" {self.folder} is good: lower TRAIN.lr, and --resume auto"
            )
        content["optimizer"] = self.learner.optimizer.state_dict()
        content["training"] = {
            **vars(progress),
            "noise": noise,
            "scaler": self.learner.scaler.state_dict(),
            "gradient_sums": None if self.norms is None else self.norms.state(),
            "random_state": torch.get_rng_state(),
        }
        save_checkpoint(self.folder, content)
        self.saved_at = time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint: exactly, where it is a training checkpoint of ours."""
        content, state = checkpoint.content, checkpoint.training
        if "optimizer" in content:
            self.learner.optimizer.load_state_dict(content["optimizer"])
        if state is None:
            self.progress.epoch = max(int(content.get("epoch", 0)), self.progress.epoch)
            self.logger.warning(
                f"{checkpoint.path} holds no training state: epoch {self.progress.epoch + 1} begins"
                " with zero noise"
            )
            return
        self.learner.noise.copy_(state["noise"][self.ranks.rank :: self.ranks.world_size])
        self.learner.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random_state"])
        for name in vars(self.progress):
            setattr(self.progress, name, state[name])
        self.logger.info(
            f"resumed {checkpoint.path}: epoch {self.progress.epoch + 1}, minibatch"
            f" {self.progress.position}"
        )


def cpu_copy(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors on the CPU in plain layout, whatever they were trained in."""
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}
