"""One training run: what it starts from, checked before any work; then epoch by epoch.

It is saved so that nothing finished is lost.
"""

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from lib.algorithm.protocols import METHODS
from lib.data.folders import evenly_spread, read_split, require_same_classes, sizes_of_sample
from lib.evaluation.load_model import (
    ModelSettings,
    model_of,
    new_model,
    settings_from,
    settings_of,
)
from lib.training.checkpointing import Run, begin_epoch
from lib.training.epoch_end import begin_selection, finish_epoch
from lib.training.loop import stop_run, train_one_epoch
from lib.training.setup import Images, Start, assemble
from lib.training.tensorboard import require_tensorboard
from models.resnet import ResNet, load_weights
from utils.config.load import dump_yaml, ignored_settings
from utils.config.settings import SETTINGS, Config, plain
from utils.config.validators import REDUCE_OVERHEAD
from utils.distributed.context import DistributedContext
from utils.distributed.signals import SIGNALS, SignalRequests, handling
from utils.errors import SharedUserError, UserError
from utils.logging import Logger
from utils.storage.checkpoint import Checkpoint, UnreadableCheckpoint, read_checkpoint
from utils.storage.files import atomic_write, make_folder
from utils.storage.run_folder import LATEST, PREVIOUS, claim, find_checkpoint, lock_folder
from utils.text import counted, shortlist


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
        # Before anything is looked for there: a training that is ending may still save.
        lock = context.run_and_share_errors(partial(lock_if_there, config.run_dir, context))
        find = partial(find_start, config, context, logger, images, lock)
        start = context.run_and_share_errors(find)
        with start.lock:
            require_same_start(images, start, context)
            if context.is_main:
                logger.write_to(config.run_dir / "log.txt")
                record, text = config.run_dir / "config.yml", dump_yaml(config)
                if not (is_finished(config, start.checkpoint) and record.exists()):
                    atomic_write(record, f"# {config.OPTIONS.command}\n{text}")
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


# What it starts from


def read_images(config: Config) -> Images:
    """The images of DIR/train and DIR/val; with TRAIN.select_from train some are held out."""
    train, val = (read_split(config.DATA.imagenet, split) for split in ("train", "val"))
    require_same_classes(train, val)
    if config.TRAIN.select_from == "val":
        return Images(train, val, val)
    total, examples = len(train.files), config.TRAIN.select_examples
    if examples >= total:
        raise UserError(
            f"TRAIN.select_from: train holds TRAIN.select_examples {examples} images out of"
            f" {total}; choose fewer"
        )
    held = evenly_spread(total, examples)
    rest = sorted(set(range(total)) - set(held))
    return Images(train.subset(rest), val, train.subset(held))


def lock_if_there(folder: Path, context: DistributedContext) -> TextIO | None:
    """The lock of a run folder that exists, for rank 0."""
    return lock_folder(make_folder(folder)) if context.is_main and folder.is_dir() else None


def find_start(
    config: Config,
    context: DistributedContext,
    logger: Logger,
    images: Images,
    held: TextIO | None,  # the lock of a run folder that is there
) -> Start:
    """Read the weights and claim the run folder, before any work."""
    train, classes = config.TRAIN, images.train.classes
    if config.DATA.batch_size % context.world_size:
        raise UserError(
            f"DATA.batch_size {config.DATA.batch_size} is the batch over all processes and does"
            f" not divide by {context.world_size}; change it or --nproc"
        )
    if train.sync_bn and context.device.type != "cuda":
        raise UserError("TRAIN.sync_bn needs CUDA; leave it out")
    if train.compile == REDUCE_OVERHEAD and context.device.type != "cuda":
        raise UserError(f"TRAIN.compile {REDUCE_OVERHEAD} needs CUDA; set it to true or false")
    if config.OPTIONS.tensorboard:
        require_tensorboard()
    require_statistics(len(images.train.files), config, context.world_size)
    checkpoint = find_resumption(config, logger)
    if checkpoint is not None:
        if config.OPTIONS.init_from:
            logger.info(f"--init_from is of a start: this goes on from {checkpoint.path}")
        settings = require_same_run(config, checkpoint, classes, logger)
        model = model_of(checkpoint, settings)
    elif config.OPTIONS.init_from:
        settings, model, checkpoint = fine_tune(config, classes, logger)
    else:
        settings = settings_from(config, classes)
        model = new_model(settings, config.RUN.seed, config.OPTIONS.pretrained)
    lock: AbstractContextManager[Any] = nullcontext()
    if context.is_main:
        # A model_best holds no state of a training: starting from it begins a new run.
        resumed = checkpoint and checkpoint.training and not is_elsewhere(config, checkpoint)
        lock = claim(make_folder(config.run_dir), bool(resumed), config.OPTIONS.overwrite, held)
    return Start(settings, model, checkpoint, lock)


def require_statistics(total: int, config: Config, world_size: int) -> None:
    """Batch-norm needs two values a channel; small crops leave one pixel an image at the end."""
    batch = config.DATA.batch_size
    sizes = {min(batch, total), total % batch or batch}
    smallest = min(max(1, size // world_size) for size in sizes)
    if config.DATA.crop_size <= 32 and smallest == 1:
        raise UserError(
            f"with {total} images, DATA.batch_size {batch} and {world_size} processes, a minibatch"
            f" has a single image, and at crop_size {config.DATA.crop_size} batch-norm needs two;"
            " choose another DATA.batch_size, or add images"
        )


def find_resumption(config: Config, logger: Logger) -> Checkpoint | None:
    """The checkpoint that `--resume` means, or None to start from scratch.

    `auto` takes the newest intact checkpoint of the run folder. Where there is none yet it starts
    from the phase before or from scratch, so that the same command starts and restarts a job.
    """
    wanted, folder, options = config.OPTIONS.resume, config.run_dir, config.OPTIONS
    if wanted not in ("", "auto"):
        checkpoint = read_given(find_checkpoint(wanted), config, logger)
        return without_finished_training(config, checkpoint)
    if wanted:
        present = [path for path in (folder / LATEST, folder / PREVIOUS) if os.path.exists(path)]
        for path in present:
            with suppress(UnreadableCheckpoint):
                return read_checkpoint(str(path))
            logger.warning(f"{path} is damaged; skipping it")
        if present:
            raise UserError(
                f"no checkpoint in {folder} is intact; start from scratch with --overwrite"
            )
    if options.start_from:
        phase_before = read_checkpoint(str(Path(options.start_from, LATEST)))
        return without_finished_training(config, phase_before)
    if wanted:
        logger.info(f"nothing to resume in {folder}: starting from scratch")
    return None


def read_given(path: str, config: Config, logger: Logger) -> Checkpoint:
    """A file of the user's; of several weights in it, the log says which are taken."""
    checkpoint = read_checkpoint(path, weights=config.OPTIONS.weights)
    if checkpoint.note:
        logger.info(checkpoint.note)
    return checkpoint


def without_finished_training(config: Config, checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint; of another, finished run, from which a phase starts, weights and momentum."""
    if checkpoint.training is None or not METHODS[config.TRAIN.method].has_phases:
        return checkpoint
    train, adv = (checkpoint.content["config"][section] for section in ("TRAIN", "ADV"))
    epochs = checkpoint.epoch * METHODS[train["method"]].epochs_per_pass(adv["n_repeats"])
    if epochs < train["epochs"] or not is_elsewhere(config, checkpoint):
        return checkpoint
    content = {key: value for key, value in checkpoint.content.items() if key != "training"}
    return replace(checkpoint, content=content)


def is_elsewhere(config: Config, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is in another folder than the run's."""
    return Path(checkpoint.path).resolve().parent != config.run_dir.resolve()


def is_finished(config: Config, checkpoint: Checkpoint | None) -> bool:
    """Whether a training has made the passes that it was to make, and no more."""
    state = checkpoint.training if checkpoint else None
    return state is not None and (state["epoch"], state["position"]) == (config.passes, 0)


def require_same_run(
    config: Config, checkpoint: Checkpoint, classes: Sequence[str], logger: Logger
) -> ModelSettings:
    """The settings of a network whose training continues."""
    settings, path = settings_of(config, checkpoint), checkpoint.path
    outputs, names = len(checkpoint.state_dict["fc.weight"]), settings.classes
    if outputs != len(classes) or (names is not None and list(names) != list(classes)):
        which = "" if names is None else f" ({shortlist(names)})"
        raise UserError(
            f"{path} has {outputs} outputs{which} and this data set {len(classes)} other classes;"
            " give its data set, or start from its weights by --init_from in place of --resume"
        )
    if checkpoint.training is not None:
        compare_settings(config, checkpoint, logger)
    its, wanted = settings.describe(), settings_from(config, None).describe()
    if its != wanted:  # the folder's name and config.yml would say so
        raise UserError(
            f"{path} is a network of {its}, and the settings say {wanted}; resume with its own,"
            " or start from its weights by --init_from in place of --resume"
        )
    # A finished run may be looked at again in its own folder.
    again = is_finished(config, checkpoint) and not is_elsewhere(config, checkpoint)
    if checkpoint.epoch >= config.passes and not again:
        raise UserError(
            f"{path} has {checkpoint.epoch} epochs of the data behind it, and TRAIN.epochs"
            f" {config.TRAIN.epochs} are {config.passes}; raise TRAIN.epochs, or evaluate it by -e"
        )
    return replace(settings, classes=list(classes))


def compare_settings(config: Config, checkpoint: Checkpoint, logger: Logger) -> None:
    """Refuse or mention settings that are not those the training was started with."""
    saved, now = checkpoint.content["config"], config.as_dict()
    finished, fixed = is_finished(config, checkpoint), list[str]()
    effect = ", too late for this training" if finished else " from here on"
    for key, setting in SETTINGS.items():
        section, _, name = key.partition(".")
        # What the version that saved them did not have stood at what is its default today.
        was, value = saved.get(section, {}).get(name, plain(setting.default)), now[section][name]
        if was != value and setting.resume == "fixed":
            fixed.append(f"{key} {was}, now {value}")
        if was != value and setting.resume == "noted":
            logger.warning(f"{key} was {was} and is {value}{effect}")
    if fixed:
        raise UserError(
            f"{checkpoint.path} is of another run ({'; '.join(fixed)}); resume with its settings,"
            " kept in config.yml beside it"
        )


def fine_tune(
    config: Config, classes: Sequence[str], logger: Logger
) -> tuple[ModelSettings, ResNet, Checkpoint]:
    """A new network with the weights of `--init_from`, and the checkpoint as far as it goes on.

    Other classes, another number of them or another kind of head get a new last layer; momentum
    is taken where all of the network fits. Mean and standard deviation are the file's, unless the
    command says others.
    """
    path = find_checkpoint(config.OPTIONS.init_from, "--init_from")
    checkpoint = read_given(path, config, logger)
    its_settings = checkpoint.model or {}
    colours = {"mean": checkpoint.mean, "std": checkpoint.std, **its_settings}
    taken: dict[str, Any] = {
        name: list(colours[name])
        for name in ("mean", "std")
        if colours[name] and not config.given(f"TRAIN.{name}")
    }
    settings = replace(settings_from(config, classes), **taken)
    model, saved = new_model(settings, config.RUN.seed, pretrained=False), checkpoint.state_dict
    head = {key: value for key, value in model.state_dict().items() if key.startswith("fc.")}
    body = {key: value for key, value in saved.items() if not key.startswith("fc.")}
    its_head = {key: saved[key].shape for key in saved.keys() - body.keys()}
    fits = its_settings.get("classes") in (None, settings.classes)
    fits = fits and its_head == {key: value.shape for key, value in head.items()}
    load_weights(model, saved if fits else {**body, **head})
    if not fits:
        logger.info(f"{path}: the last layer is new, of {model.num_classes} classes")
    optimizer = checkpoint.content.get("optimizer") if fits and checkpoint.is_ours else None
    return settings, model, replace(checkpoint, content={"optimizer": optimizer})


def require_same_start(images: Images, start: Start, context: DistributedContext) -> None:
    """All processes must read the same images and resume from the same minibatch."""
    files = sizes_of_sample(images.train), sizes_of_sample(images.val)
    training = (start.checkpoint and start.checkpoint.training) or {}
    seen = context.gather((files, training.get("epoch"), training.get("position")))
    for rank, other in enumerate(seen):
        if other != seen[0]:
            what = "other images" if other[0] != seen[0][0] else "another checkpoint"
            raise SharedUserError(
                f"process {rank} sees {what} than process 0; all machines need the same"
                " files, on a shared disk"
            )
