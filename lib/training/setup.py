"""The run made of what a training starts from: loaders, networks, optimizer, restored state."""

import inspect
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.metrics import MetricSums
from lib.algorithm.protocols import METHODS
from lib.algorithm.schedules import Schedule
from lib.algorithm.training import (
    TRAINING_STEP,
    GradientHook,
    Network,
    NoiseUpdate,
    Perturbed,
    Trainer,
    TrainingSettings,
    make_noise,
    update_noise_,
)
from lib.data.datasets import DistributedBatchSampler, ImageBatches, train_transform
from lib.data.folders import ImageTree
from lib.data.loader import Loader, share_of_workers
from lib.evaluation.load_model import ModelSettings
from lib.evaluation.task import EvaluationData
from lib.training.checkpointing import Progress, Run, restore_state
from lib.training.tensorboard import TensorBoardLog
from models.resnet import ResNet
from utils.compiling import Compiled, compile_mode, compiles
from utils.config.settings import Config, Data
from utils.distributed.context import DistributedContext
from utils.distributed.signals import SignalRequests
from utils.logging import Logger
from utils.storage.checkpoint import Checkpoint


@dataclass(frozen=True)
class Images:
    """The images of a training."""

    train: ImageTree
    val: ImageTree
    selection: ImageTree  # that choose the best model


@dataclass(frozen=True)
class Start:
    """A network, and where its training stands."""

    settings: ModelSettings
    model: ResNet
    checkpoint: Checkpoint | None  # that is resumed, or fine-tuned
    lock: AbstractContextManager[Any]  # of the run folder, held by rank 0


def assemble(
    config: Config,
    context: DistributedContext,
    logger: Logger,
    requests: SignalRequests,
    images: Images,
    start: Start,
) -> Run:
    """The run, ready for its next minibatch."""
    torch.manual_seed(config.RUN.seed)  # nothing draws from it today, and checkpoints hold it
    order, loader = make_train_loader(images.train, config.DATA, config.RUN.seed, context)
    mode = mode_of_run(config, order.batches_per_epoch(), start.checkpoint, context)
    trainer = make_trainer(start.model, config, start.settings.scaled_margin, context, mode)
    progress = Progress(epoch=config.TRAIN.start_epoch)
    if start.checkpoint is not None:
        progress = restore_state(start.checkpoint, trainer, context, progress.epoch, logger)
    warn_of_other_images(images.train, progress, logger)
    work = partial(rehearse, trainer, config.TRAIN.method)
    if mode and not compiles(work, "TRAIN.compile", config.TRAIN.compile, context, logger):
        run_eagerly(trainer)
        mode = False
    progress.compiled = mode
    progress.images_hash = images.train.fingerprint
    norms = None
    if config.OPTIONS.print_gradients:
        norms = GradientNorms(trainer, context.average_, progress.gradient_sums)
    run = Run(
        config=config,
        context=context,
        logger=logger,
        requests=requests,
        model_settings=start.settings,
        trainer=trainer,
        progress=progress,
        schedule=make_schedule(config),
        order=order,
        loader=loader,
        validation=make_validation(images.val, config.DATA, context),
        selection=make_validation(images.selection, config.DATA, context),
        norms=norms,
        sums=MetricSums(context.device),
    )
    if config.OPTIONS.tensorboard and context.is_main:
        run.board = TensorBoardLog(config.run_dir, run.step + 1)
    return run


def mode_of_run(
    config: Config, batches_per_epoch: int, start: Checkpoint | None, context: DistributedContext
) -> bool | str:
    """How the network is compiled; what `auto` came to, a run on CUDA keeps when it is resumed."""
    train, adv = config.TRAIN, config.ADV
    steps = batches_per_epoch * config.passes
    steps *= METHODS[train.method].cost(adv.n_repeats, adv.train_steps)
    saved: bool | str | None = ((start and start.training) or {}).get("compiled")
    if train.compile == "auto" and context.device.type == "cuda" and saved is not None:
        return saved
    return compile_mode(train.compile, context.device, steps)


def warn_of_other_images(tree: ImageTree, progress: Progress, logger: Logger) -> None:
    """The order of an epoch follows from the list of images; with another list it is another."""
    if progress.images_hash not in ("", tree.fingerprint):
        part = f"the rest of epoch {progress.epoch + 1}" if progress.position else "from here on it"
        logger.warning(
            f"the training images are not those that this run was interrupted with: {part} takes"
            f" the {len(tree.files)} images that are there now, in their own order"
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
    return order, Loader(images, order, workers, context.device, context.local_processes)


def make_validation(tree: ImageTree, data: Data, context: DistributedContext) -> EvaluationData:
    """How images are read for validation."""
    share = max(1, data.batch_size // context.world_size)
    workers = share_of_workers(data.workers, context)
    sizes = data.img_size, data.crop_size, share
    return EvaluationData(tree, *sizes, workers, context, interpolation=data.interpolation)


# What forward passes go through


def make_networks(
    model: nn.Module, mode: bool | str, share: int, context: DistributedContext
) -> tuple[Network, Network, NoiseUpdate]:
    """What forward passes go through, those of updates and those of attacks; what moves the noise.

    The model, compiled for whole minibatches; for updates of several processes in DDP.

    Args:
        mode: see `utils.compiling.compile_mode`.
        share: images of a whole minibatch that fall to this process.
    """

    def compiled(network: nn.Module) -> Network:
        return Compiled(network, share, mode) if mode else network

    perturbed = Perturbed(model)
    attacked = compiled(perturbed)
    move_noise = Compiled(update_noise_, share) if mode else update_noise_
    if context.world_size == 1:
        return attacked, attacked, move_noise
    ids = [context.device.index] if context.device.type == "cuda" else None
    # Training does not read the running statistics, so rank 0's are copied where they are read,
    # instead of at every forward pass.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    sync: Any = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    updated = DistributedDataParallel(
        perturbed, device_ids=ids, gradient_as_bucket_view=True, **sync
    )
    return compiled(updated), attacked, move_noise


class Rehearsal(Trainer):
    """Another trainer's networks, in steps that compute everything and update nothing."""

    def __init__(self, trainer: Trainer) -> None:
        networks = trainer.network, trainer.attack_network, trainer.move_noise
        noise = torch.zeros_like(trainer.noise)
        super().__init__(trainer.model, trainer.optimizer, noise, trainer.settings, *networks)

    def update(self, gradient_hook: GradientHook | None = None) -> None:
        self.optimizer.zero_grad(set_to_none=True)


def rehearse(trainer: Trainer, method: str) -> None:
    """A step of a whole minibatch that leaves no trace in weights, statistics or momentum."""
    kept = [buffer.clone() for buffer in trainer.model.buffers()]
    trainer.model.train()
    images = torch.zeros_like(trainer.noise)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    try:
        TRAINING_STEP[method](Rehearsal(trainer), images, labels)
    finally:
        for buffer, value in zip(trainer.model.buffers(), kept, strict=True):
            buffer.copy_(value)


def run_eagerly(trainer: Trainer) -> None:
    """Let passes go through the networks as they are."""
    for name in ("network", "attack_network", "move_noise"):
        network = getattr(trainer, name)
        setattr(trainer, name, network.network if isinstance(network, Compiled) else network)
