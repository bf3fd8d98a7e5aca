"""What a training starts from, all of it checked before any work, and the run made of it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.metrics import MetricSums
from lib.algorithm.protocols import METHODS
from lib.algorithm.schedules import Schedule
from lib.algorithm.training import Trainer, TrainingSettings, make_noise
from lib.data.datasets import ImageBatches, train_transform
from lib.data.folders import ImageTree, read_split, require_same_classes, sizes_of_sample
from lib.data.loader import Loader, make_loader, share_of_workers
from lib.data.sampler import DistributedBatchSampler
from lib.data.subsets import evenly_spread
from lib.evaluation.load_model import ModelSettings, model_of, new_model, settings_from
from lib.evaluation.validation import EvaluationData
from lib.training.checkpointing import (
    Progress,
    Run,
    find_resumption,
    require_same_run,
    restore_momentum,
    restore_state,
)
from lib.training.fine_tuning import model_from
from lib.training.networks import make_networks, rehearse, run_eagerly
from lib.training.tensorboard import TensorBoardLog, require_tensorboard
from models.resnet import ResNet
from utils.compiling import compile_mode, compiles
from utils.config.settings import Config, Data
from utils.config.validators import REDUCE_OVERHEAD
from utils.distributed.context import DistributedContext
from utils.distributed.signals import SignalRequests
from utils.errors import SharedUserError, UserError
from utils.logging import Logger
from utils.storage.checkpoint import Checkpoint
from utils.storage.files import make_folder, names_sha256
from utils.storage.run_folder import claim


@dataclass(frozen=True)
class Setup:
    """What a run starts from.

    Attributes:
        selection: the images that choose the best model.
        momentum: the optimizer's state of `--init_from`, or None.
        lock: of the run folder, for the first process.
    """

    train: ImageTree
    val: ImageTree
    selection: ImageTree
    model_settings: ModelSettings
    model: ResNet
    resumed: Checkpoint | None
    momentum: Any
    lock: AbstractContextManager[Any]


def read_images(data: str) -> tuple[ImageTree, ImageTree]:
    """The images of DIR/train and DIR/val."""
    train, val = read_split(data, "train"), read_split(data, "val")
    require_same_classes(train, val)
    return train, val


def set_up(
    config: Config,
    context: DistributedContext,
    logger: Logger,
    trees: tuple[ImageTree, ImageTree],
) -> Setup:
    """Read the weights and claim the run folder, before any work.

    Args:
        trees: the images of training and validation.
    """
    if config.DATA.batch_size % context.world_size:
        raise UserError(
            f"DATA.batch_size {config.DATA.batch_size} is the batch over all processes and does"
            f" not divide by {context.world_size}; change it or --nproc"
        )
    if config.TRAIN.sync_bn and context.device.type != "cuda":
        raise UserError("TRAIN.sync_bn needs CUDA; leave it out")
    if config.TRAIN.compile == REDUCE_OVERHEAD and context.device.type != "cuda":
        raise UserError(f"TRAIN.compile {REDUCE_OVERHEAD} needs CUDA; set it to true or false")
    if config.OPTIONS.tensorboard:
        require_tensorboard()
    train_tree, val_tree = trees
    selection = val_tree
    if config.TRAIN.select_from == "train":
        train_tree, selection = hold_out(train_tree, config.TRAIN.select_examples)
    require_statistics(len(train_tree.files), config, context.world_size)
    resumed, momentum = find_resumption(config, config.run_dir, logger), None
    if resumed is None:
        settings = settings_from(config, train_tree.classes)
        if config.OPTIONS.init_from:
            model, settings, momentum = model_from(config, settings, logger)
        else:
            model = new_model(settings, config.RUN.seed, config.OPTIONS.pretrained)
    else:
        settings = require_same_run(config, resumed, train_tree.classes, logger)
        model = model_of(resumed, settings)
    lock: AbstractContextManager[Any] = nullcontext()
    if context.is_main:
        lock = claim_folder(config, resumed)
    return Setup(train_tree, val_tree, selection, settings, model, resumed, momentum, lock)


def hold_out(tree: ImageTree, examples: int) -> tuple[ImageTree, ImageTree]:
    """A tree without some evenly spread images, and these."""
    total = len(tree.files)
    if examples >= total:
        raise UserError(
            f"TRAIN.select_from: train holds TRAIN.select_examples {examples} images out of"
            f" {total}; choose fewer"
        )
    held = evenly_spread(total, examples)
    rest = sorted(set(range(total)) - set(held))
    return tree.subset(rest), tree.subset(held)


def claim_folder(config: Config, resumed: Checkpoint | None) -> TextIO:
    """Make, lock and claim the run folder."""
    folder = make_folder(config.run_dir)
    # A model_best holds no state of a training: starting from it begins a new run.
    here = False
    if resumed is not None and resumed.training is not None:
        here = Path(resumed.path).resolve().parent == folder.resolve()
    return claim(folder, here, config.OPTIONS.overwrite)


def require_statistics(total: int, config: Config, world_size: int) -> None:
    """Batch-norm needs two values a channel; small crops leave one pixel an image at the end."""
    batch = config.DATA.batch_size
    sizes = {min(batch, total), total % batch or batch}
    smallest = min(max(1, size // world_size) for size in sizes)
    if config.DATA.crop_size <= 32 and smallest == 1:
        raise UserError(
            f"with {total} images, DATA.batch_size {batch} and {world_size} processes, a minibatch"
            f" has a single image, and at crop_size {config.DATA.crop_size} batch-norm needs two;"
            + (" choose another DATA.batch_size" if total > 1 else " add images")
        )


def require_same_start(setup: Setup, context: DistributedContext) -> None:
    """All processes must read the same images and resume from the same minibatch."""
    images = sizes_of_sample(setup.train), sizes_of_sample(setup.val)
    training = (setup.resumed.training if setup.resumed else None) or {}
    seen = context.gather((images, training.get("epoch"), training.get("position")))
    for rank, other in enumerate(seen):
        if other != seen[0]:
            what = "other images" if other[0] != seen[0][0] else "another checkpoint"
            raise SharedUserError(
                f"process {rank} sees {what} than process 0; all machines need the same"
                " files, on a shared disk"
            )


def assemble(
    config: Config,
    context: DistributedContext,
    logger: Logger,
    setup: Setup,
    requests: SignalRequests,
) -> Run:
    """The run, ready for its next minibatch."""
    torch.manual_seed(config.RUN.seed)  # nothing draws from it today, and checkpoints hold it
    order, loader = make_train_loader(setup.train, config.DATA, config.RUN.seed, context)
    mode = mode_of_run(config, order.batches_per_epoch(), setup.resumed, context)
    margin = setup.model_settings.scaled_margin
    trainer = make_trainer(setup.model, config, margin, context, mode)
    progress = Progress(epoch=config.TRAIN.start_epoch)
    restore_momentum(trainer.optimizer, setup.momentum, config.OPTIONS.init_from, logger)
    if setup.resumed is not None:
        progress = restore_state(setup.resumed, trainer, context, progress.epoch, logger)
        warn_of_other_images(setup, progress, logger)
    work = partial(rehearse, trainer, config.TRAIN.method)
    if mode and not compiles(work, "TRAIN.compile", config.TRAIN.compile, context, logger):
        run_eagerly(trainer)
        mode = False
    progress.compiled = mode
    progress.images_hash = names_sha256(setup.train.files)
    norms = None
    if config.OPTIONS.print_gradients:
        norms = GradientNorms(trainer, context.average_, progress.gradient_sums)
    run = Run(
        config=config,
        context=context,
        logger=logger,
        requests=requests,
        model_settings=setup.model_settings,
        trainer=trainer,
        progress=progress,
        schedule=make_schedule(config),
        order=order,
        loader=loader,
        validation=make_validation(setup.val, config.DATA, context),
        selection=make_validation(setup.selection, config.DATA, context),
        norms=norms,
        sums=MetricSums(context.device),
    )
    if config.OPTIONS.tensorboard and context.is_main:
        run.board = TensorBoardLog(config.run_dir, run.step + 1)
    return run


def mode_of_run(
    config: Config, minibatches: int, resumed: Checkpoint | None, context: DistributedContext
) -> bool | str:
    """How the network is compiled; what `auto` came to, a run on CUDA keeps when it is resumed.

    Args:
        minibatches: of a pass over the data.
    """
    train, adv = config.TRAIN, config.ADV
    passes = minibatches * config.passes
    passes *= METHODS[train.method].cost(adv.n_repeats, adv.train_steps)
    saved: bool | str | None = ((resumed and resumed.training) or {}).get("compiled")
    if train.compile == "auto" and context.device.type == "cuda" and saved is not None:
        return saved
    return compile_mode(train.compile, context.device, passes)


def warn_of_other_images(setup: Setup, progress: Progress, logger: Logger) -> None:
    """The order of an epoch follows from the list of images; with another list it is another."""
    if progress.images_hash not in ("", names_sha256(setup.train.files)):
        part = f"the rest of epoch {progress.epoch + 1}" if progress.position else "from here on it"
        logger.warning(
            f"the training images are not those that this run was interrupted with: {part} takes"
            f" the {len(setup.train.files)} images that are there now, in their own order"
        )


def make_trainer(
    model: ResNet,
    config: Config,
    scaled_margin: float,
    context: DistributedContext,
    mode: bool | str = False,
) -> Trainer:
    """Model, optimizer and noise on the device.

    Args:
        mode: how the network is compiled, see `utils.compiling.compile_mode`.
    """
    train = config.TRAIN
    if train.sync_bn and context.world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(context.device).to(memory_format=torch.channels_last)
    average = None
    if train.ema:  # batch-norm's statistics are averaged as the weights are
        average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(train.ema), use_buffers=True
        )
    share = config.DATA.batch_size // context.world_size
    return Trainer(
        model,
        make_optimizer(model, config, context.device.type),
        make_noise(share, config.DATA.crop_size, context.device),
        TrainingSettings(
            eps=config.eps,
            step=config.step,
            scaled_margin=scaled_margin,
            precision=train.precision,
            label_smoothing=train.label_smoothing,
            attack_steps=config.ADV.train_steps,
        ),
        *make_networks(model, mode, share, context),
        average,
    )


def make_optimizer(model: nn.Module, config: Config, kind: str) -> torch.optim.SGD:
    """SGD as published; one fused kernel where the device has it."""
    train = config.TRAIN
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and not train.bn_weight_decay]
    exempt = {id(parameter) for norm in norms for parameter in norm.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if id(p) not in exempt]}
    ]
    if exempt:
        without = [p for p in model.parameters() if id(p) in exempt]
        groups.append({"params": without, "weight_decay": 0.0})
    # The fused kernel lets an overflow, whose step fp16's scaler skips, into the momentum.
    fused = kind in ("cpu", "cuda") and train.precision != "fp16"
    return torch.optim.SGD(
        groups,
        train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        fused=True if fused else None,
    )


def make_schedule(config: Config) -> Schedule:
    """The learning rate."""
    train = config.TRAIN
    return Schedule(
        config.schedule,
        train.lr,
        config.epochs_per_pass,
        config.passes,
        train.lr_epochs,
        train.lr_values,
        train.warmup_epochs,
    )


def make_train_loader(
    tree: ImageTree, data: Data, seed: int, context: DistributedContext
) -> tuple[DistributedBatchSampler, Loader]:
    """The order of the training images, and what reads them in it."""
    total = len(tree.files)
    order = DistributedBatchSampler(total, data.batch_size, context.rank, context.world_size, seed)
    crop = train_transform(data.crop_size, data.min_area, data.flip)
    images = ImageBatches([tree], crop, data.crop_size, seed)
    workers = share_of_workers(data.workers, context)
    return order, make_loader(images, order, workers, context.device, context.local_processes)


def make_validation(tree: ImageTree, data: Data, context: DistributedContext) -> EvaluationData:
    """How images are read for validation."""
    share = max(1, data.batch_size // context.world_size)
    workers = share_of_workers(data.workers, context)
    sizes = data.img_size, data.crop_size, share
    return EvaluationData(tree, *sizes, workers, context, interpolation=data.interpolation)
