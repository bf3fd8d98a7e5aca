"""From settings to a run: what it starts from, checked before any work, and its parts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lib.algorithm.free_training import Trainer, TrainingSettings, make_noise
from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.metrics import MetricSums
from lib.data.datasets import ImageBatches, train_transform
from lib.data.folders import ImageTree, read_split, require_same_classes
from lib.data.loader import make_loader, share_of_workers
from lib.data.samplers import GlobalBatches
from lib.evaluation.model_settings import ModelSettings, model_of, new_model, settings_from
from lib.evaluation.validation import EvaluationData
from lib.training.resumption import find_resumption, require_same_run
from lib.training.state import Progress, Run, restore_state
from lib.training.tensorboard import TensorBoardLog, require_tensorboard
from models.resnet import ResNet
from utils.config.schema import Config
from utils.distributed.context import DistributedContext
from utils.distributed.signals import SignalRequests, leave_to_parent
from utils.errors import SharedUserError, UserError
from utils.logging import Logger
from utils.storage.checkpoint import Checkpoint
from utils.storage.files import make_folder, names_sha256
from utils.storage.run_folder import FolderLock, claim


@dataclass(frozen=True)
class Setup:
    """What a run starts from."""

    train: ImageTree
    val: ImageTree
    settings: ModelSettings
    model: ResNet
    resumed: Checkpoint | None
    lock: AbstractContextManager  # of the run folder, for the first process


def set_up(config: Config, context: DistributedContext, logger: Logger) -> Setup:
    """Read the data's file lists and the weights, and claim the run folder, before any work.

    Raises:
        UserError: anything that would stop the run later.
    """
    if config.DATA.batch_size % context.world_size:
        raise UserError(
            f"DATA.batch_size {config.DATA.batch_size} is the batch over all processes and does"
            f" not divide by {context.world_size}; change it or --nproc"
        )
    if config.TRAIN.sync_bn and context.device.type != "cuda":
        raise UserError("TRAIN.sync_bn needs CUDA; leave it out")
    if config.OPTIONS.tensorboard:
        require_tensorboard()
    data = config.OPTIONS.data or config.DATA.imagenet
    train_tree, val_tree = read_split(data, "train"), read_split(data, "val")
    require_same_classes(train_tree, val_tree)
    require_statistics(len(train_tree.files), config, context.world_size)
    folder = config.run_dir
    resumed = find_resumption(config, folder, logger)
    if resumed is None:
        settings = settings_from(config, train_tree.classes)
        model = new_model(settings, config.RUN.seed, config.OPTIONS.pretrained)
    else:
        settings = require_same_run(config, resumed, train_tree.classes, logger)
        model = model_of(resumed, settings)
    lock: AbstractContextManager = nullcontext()
    if context.is_main:
        make_folder(folder)
        lock = held = FolderLock(folder)
        # A model_best holds no training to go on with: beginning from it begins a new run.
        goes_on = resumed is not None and resumed.training is not None
        here = goes_on and Path(resumed.path).resolve().parent == folder.resolve()
        try:
            claim(folder, here, config.OPTIONS.overwrite)
        except UserError:
            held.release()
            raise
    return Setup(train_tree, val_tree, settings, model, resumed, lock)


def require_statistics(total: int, config: Config, world_size: int) -> None:
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
            + (" choose another DATA.batch_size" if total > 1 else " add images")
        )


def require_same_start(setup: Setup, context: DistributedContext) -> None:
    """All processes must read the same images and resume from the same minibatch.

    Raises:
        UserError: a machine sees something else under the same path.
    """
    images = names_sha256((*setup.train.files, *setup.val.files))
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
    folder = config.run_dir
    trainer = make_trainer(setup.model, config, setup.settings.scaled_margin, context)
    progress = Progress(epoch=config.TRAIN.start_epoch)
    if setup.resumed is not None:
        progress = restore_state(setup.resumed, trainer, context, progress.epoch, logger)
    norms = board = None
    if config.OPTIONS.print_gradients:
        norms = GradientNorms(
            trainer.model, trainer.loss, context.average_, progress.gradient_sums, trainer.scaler
        )
    if config.OPTIONS.tensorboard and context.is_main:
        board = TensorBoardLog(folder, progress.epoch + 1)
    order, loader = make_train_loader(setup.train, config.DATA, config.RUN.seed, context)
    return Run(
        config=config,
        context=context,
        logger=logger,
        requests=requests,
        epochs=config.passes,
        folder=folder,
        model_settings=setup.settings,
        trainer=trainer,
        progress=progress,
        order=order,
        loader=loader,
        validation=make_validation(setup.val, config.DATA, context),
        norms=norms,
        board=board,
        sums=MetricSums(context.device),
    )


def make_trainer(
    model: ResNet, config: Config, scaled_margin: float, context: DistributedContext
) -> Trainer:
    """Model, optimizer and noise on the device."""
    if config.TRAIN.sync_bn and context.world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(context.device, memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True  # all minibatches have one size; CUDA alone heeds it
    settings = TrainingSettings(
        eps=config.eps,
        step=config.step,
        scaled_margin=scaled_margin,
        precision=config.TRAIN.precision,
    )
    share = config.DATA.batch_size // context.world_size
    return Trainer(
        model,
        make_optimizer(model, config, context.device.type),
        make_noise(share, config.DATA.crop_size, context.device),
        settings,
        make_network(model, config, context),
    )


def make_train_loader(
    tree: ImageTree, data: Any, seed: int, context: DistributedContext
) -> tuple[GlobalBatches, Any]:
    """The order of the training images, and what reads them in it."""
    total = len(tree.files)
    order = GlobalBatches(total, data.batch_size, context.rank, context.world_size, seed)
    crop = train_transform(data.crop_size, data.min_area)
    images = ImageBatches(tree, crop, data.crop_size, seed, data.flip)
    workers = share_of_workers(data.workers, context.world_size)
    return order, make_loader(images, order, workers, context.device, leave_to_parent)


def make_validation(tree: ImageTree, data: Any, context: DistributedContext) -> EvaluationData:
    """How the validation images are read."""
    share = max(1, data.batch_size // context.world_size)
    workers = share_of_workers(data.workers, context.world_size)
    return EvaluationData(tree, data.img_size, data.crop_size, share, workers, context)


def make_network(model: ResNet, config: Config, context: DistributedContext) -> nn.Module:
    """What forward passes of training go through: the model, in DDP and compiled as asked."""
    network: Any = model
    if context.world_size > 1:
        ids = [context.device.index] if context.device.type == "cuda" else None
        # Buffers follow rank 0 at every forward pass, as in the published DataParallel.
        network = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    return torch.compile(network) if config.TRAIN.compile else network


def make_optimizer(model: nn.Module, config: Config, kind: str) -> torch.optim.SGD:
    """SGD as published; one fused kernel where the device has it."""
    train = config.TRAIN
    # The fused kernel lets an overflow, whose step fp16's scaler skips, into the momentum.
    fused = kind in ("cpu", "cuda") and train.precision != "fp16"
    return torch.optim.SGD(
        model.parameters(),
        train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        fused=True if fused else None,
    )
