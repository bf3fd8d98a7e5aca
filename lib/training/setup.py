"""What a training starts from, all of it checked before any work."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lib.data.folders import ImageTree, read_split, require_same_classes, sizes_of_sample
from lib.data.subsets import evenly_spread
from lib.evaluation.model_settings import ModelSettings, model_of, new_model, settings_from
from lib.training.resumption import begins_phase, find_resumption, require_same_run
from lib.training.tensorboard import require_tensorboard
from models.resnet import ResNet
from utils.config.settings import Config
from utils.config.validators import REDUCE_OVERHEAD
from utils.distributed.context import DistributedContext
from utils.errors import SharedUserError, UserError
from utils.logging import Logger
from utils.storage.checkpoint import Checkpoint
from utils.storage.files import make_folder
from utils.storage.run_folder import claim


@dataclass(frozen=True)
class Setup:
    """What a run starts from.

    Attributes:
        selection: the images that choose the best model.
        new_phase: whether weights and momentum of `resumed` alone are taken, into a run of its own.
        lock: of the run folder, for the first process.
    """

    train: ImageTree
    val: ImageTree
    selection: ImageTree
    model_settings: ModelSettings
    model: ResNet
    resumed: Checkpoint | None
    new_phase: bool
    lock: AbstractContextManager[Any]


def read_images(data: str) -> tuple[ImageTree, ImageTree]:
    """The images of DIR/train and DIR/val.

    Raises:
        UserError: one is not in order, or their classes differ.
    """
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
    if config.TRAIN.compile == REDUCE_OVERHEAD and context.device.type != "cuda":
        raise UserError(f"TRAIN.compile {REDUCE_OVERHEAD} needs CUDA; set it to true or false")
    if config.OPTIONS.tensorboard:
        require_tensorboard()
    train_tree, val_tree = trees
    selection = val_tree
    if config.TRAIN.select_from == "train":
        train_tree, selection = hold_out(train_tree, config.TRAIN.select_examples)
    require_statistics(len(train_tree.files), config, context.world_size)
    resumed = find_resumption(config, config.run_dir, logger)
    new_phase = resumed is not None and begins_phase(config, resumed)
    if resumed is None:
        settings = settings_from(config, train_tree.classes)
        model = new_model(settings, config.RUN.seed, config.OPTIONS.pretrained)
    else:
        settings = require_same_run(config, resumed, train_tree.classes, new_phase, logger)
        model = model_of(resumed, settings)
    lock: AbstractContextManager[Any] = nullcontext()
    if context.is_main:
        lock = claim_folder(config, resumed)
    return Setup(train_tree, val_tree, selection, settings, model, resumed, new_phase, lock)


def hold_out(tree: ImageTree, examples: int) -> tuple[ImageTree, ImageTree]:
    """A tree without some evenly spread images, and these.

    Raises:
        UserError: nothing would be left to train on.
    """
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
    """Make, lock and claim the run folder.

    Raises:
        UserError: another run is there.
    """
    folder = make_folder(config.run_dir)
    # A model_best holds no state of a training: starting from it begins a new run.
    here = False
    if resumed is not None and resumed.training is not None:
        here = Path(resumed.path).resolve().parent == folder.resolve()
    return claim(folder, here, config.OPTIONS.overwrite)


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
