"""The state of a training: what lives through it, what a checkpoint keeps, and how it resumes."""

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.metrics import MetricSums
from lib.algorithm.protocols import METHODS
from lib.algorithm.schedules import Schedule
from lib.algorithm.training import Trainer
from lib.data.loader import Loader
from lib.data.sampler import DistributedBatchSampler
from lib.evaluation.load_model import ModelSettings, settings_of
from lib.evaluation.validation import EvaluationData
from lib.training.tensorboard import TensorBoardLog
from utils.config.settings import SETTINGS, Config, plain
from utils.distributed.context import DistributedContext
from utils.distributed.signals import SignalRequests
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.checkpoint import (
    Checkpoint,
    UnreadableCheckpoint,
    read_checkpoint,
    save_best,
    save_checkpoint,
)
from utils.storage.provenance import processor, versions
from utils.storage.run_folder import BEST, LATEST, PREVIOUS, find_checkpoint
from utils.text import shortlist


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
        images_hash: of the list of training images; "" in checkpoints that do not have it.
        best_ema: as `best`, of the averaged weights.
        best_of: what both measure, see `lib.training.epoch_end.selection_of`.
        compiled: how the network is compiled, see `utils.compiling.compile_mode`.
    """

    epoch: int = 0
    position: int = 0
    totals: list[float] = field(default_factory=lambda: [0.0, 0, 0, 0])
    seconds: float = 0.0
    best: float = -1.0
    history: list[list] = field(default_factory=list)
    gradient_sums: torch.Tensor | None = None
    images_hash: str = ""
    best_ema: float = -1.0
    best_of: dict[str, str] = field(default_factory=dict)
    compiled: bool | str = False

    def end_epoch(self) -> None:
        """The next epoch is to begin."""
        self.epoch, self.position = self.epoch + 1, 0
        self.totals, self.seconds = [0.0, 0, 0, 0], 0.0


@dataclass
class Run:
    """Everything that lives through the epochs of a training.

    Attributes:
        selection: the images that choose the best model.
        sums: of the epoch so far, in this process.
        epoch_started: when the epoch would have started without interruptions, monotonic seconds.
        resumed_at: when this process began with the epoch.
    """

    config: Config
    context: DistributedContext
    logger: Logger
    requests: SignalRequests
    model_settings: ModelSettings
    trainer: Trainer
    progress: Progress
    schedule: Schedule
    order: DistributedBatchSampler
    loader: Loader
    validation: EvaluationData
    selection: EvaluationData
    norms: GradientNorms | None
    sums: MetricSums
    board: TensorBoardLog | None = None
    epoch_started: float = 0.0
    resumed_at: float = 0.0
    saved_at: float = field(default_factory=time.monotonic)
    drawn_at: float = field(default_factory=time.monotonic)
    warned_of_waiting: bool = False

    @property
    def step(self) -> int:
        """Minibatches that are done since the beginning of the training."""
        return self.progress.epoch * self.order.batches_per_epoch() + self.progress.position

    def close(self) -> None:
        """End the reading processes and the logs."""
        self.loader.kill_workers()
        if self.board is not None:
            self.board.close()


def begin_epoch(run: Run) -> None:
    """Take sums and clock of the epoch up where `run.progress` has them."""
    totals = run.progress.totals if run.context.is_main else None
    run.sums = MetricSums(run.context.device, totals)
    run.loader.seconds_waited, run.resumed_at = 0.0, time.monotonic()
    run.epoch_started = run.resumed_at - run.progress.seconds


def epoch_totals(run: Run) -> list[float]:
    """The epoch's `MetricSums.totals` over all processes; this synchronises with the device."""
    totals = run.context.sum(run.sums.totals())
    if not math.isfinite(totals[0]):
        where = f"epoch {run.progress.epoch + 1}, by minibatch {run.progress.position}"
        raise diverged(f"the loss is not finite in {where}", run.config.run_dir)
    return totals


def save(run: Run, best: Iterable[str] = ()) -> None:
    """Write checkpoint.pth.tar; rank 0 writes, every process gives its share of the noise.

    Args:
        best: model_best.pth.tar and model_ema_best.pth.tar, to be written first; they keep the
            network and how to use it, without the state of the training.

    Raises:
        UserError: loss or weights are not finite, or the disk is full; the last checkpoint stays.
    """
    progress, trainer, folder = run.progress, run.trainer, run.config.run_dir
    progress.totals = epoch_totals(run)
    progress.seconds = time.monotonic() - run.epoch_started
    progress.gradient_sums = None if run.norms is None else run.norms.state()
    noise = run.context.gather_strided(trainer.noise)
    if run.context.is_main:
        content = network_content(run)
        for name in best:
            save_best(folder, content if name == BEST else averaged(run, content), name)
        training = {
            **vars(progress),
            "noise": noise,
            "scaler": trainer.scaler.state_dict(),
            "random_state": torch.get_rng_state(),
            **averaged_state(trainer.average),
        }
        optimizer = trainer.optimizer.state_dict()
        save_checkpoint(folder, {**content, "optimizer": optimizer, "training": training})
    run.saved_at = time.monotonic()


def network_content(run: Run) -> dict[str, Any]:
    """What a checkpoint keeps of the network, and how to use it."""
    state_dict = cpu_copy(run.trainer.model.state_dict())
    if not all(bool(value.isfinite().all()) for value in state_dict.values()):
        where = f"epoch {run.progress.epoch + 1}"
        raise diverged(f"weights are not finite in {where}", run.config.run_dir)
    return {
        "epoch": run.progress.epoch,
        "arch": run.model_settings.arch,
        "best_prec1": run.progress.best,
        "model": vars(run.model_settings),
        "state_dict": state_dict,
        "config": run.config.as_dict(),
        "versions": machine(run.context.device),
    }


def machine(device: torch.device) -> dict[str, str]:
    """What rounding depends on: versions, and the name of the device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {**versions(), "device": name}


def averaged(run: Run, content: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's content with the averaged weights."""
    assert run.trainer.average is not None
    network = run.trainer.average.module
    return {
        **content,
        "best_prec1": run.progress.best_ema,
        "state_dict": cpu_copy(network.state_dict()),
    }


def averaged_state(average: AveragedModel | None) -> dict[str, Any]:
    """What a checkpoint keeps of the average of the weights."""
    if average is None:
        return {}
    state = cpu_copy(average.module.state_dict())
    return {"ema": {"state_dict": state, "n_averaged": int(average.n_averaged)}}


def diverged(what: str, folder: Path) -> UserError:
    """The error of a training whose numbers are not finite any more, and its fix."""
    fix = "lower TRAIN.lr or use TRAIN.precision fp32"
    if (folder / LATEST).exists():
        what += f"; the last checkpoint in {folder} is intact"
        return UserError(f"{what}: {fix}, and --resume auto")
    return UserError(f"{what}, before anything was saved: {fix}, and start from scratch")


def cpu_copy(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors on the CPU in plain layout, whatever they were trained in."""
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def find_resumption(config: Config, folder: Path, logger: Logger) -> Checkpoint | None:
    """The checkpoint that `--resume` means, or None to start from scratch.

    `auto` takes the newest intact checkpoint of the run folder. Where there is none yet it starts
    from the phase before or from scratch, so that the same command starts and restarts a job.
    """
    wanted, phase_before = config.OPTIONS.resume, config.OPTIONS.start_from
    if wanted not in ("", "auto"):
        start = read_checkpoint(find_checkpoint(wanted), weights=config.OPTIONS.weights)
        if start.note:
            logger.info(start.note)
        return without_finished_training(config, start)
    present = [path for path in (folder / LATEST, folder / PREVIOUS) if os.path.exists(path)]
    for path in present if wanted else ():
        with suppress(UnreadableCheckpoint):
            return read_checkpoint(str(path))
        logger.warning(f"{path} is damaged; skipping it")
    if present and wanted:
        raise UserError(f"no checkpoint in {folder} is intact; start from scratch with --overwrite")
    if phase_before:
        start = read_checkpoint(str(Path(phase_before, LATEST)))
        return without_finished_training(config, start)
    if wanted:
        logger.info(f"nothing to resume in {folder}: starting from scratch")
    return None


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
    return Path(checkpoint.path).parent.resolve() != config.run_dir.resolve()


def require_same_run(
    config: Config, checkpoint: Checkpoint, classes: Sequence[str], logger: Logger
) -> ModelSettings:
    """The settings of a network whose training continues."""
    settings = settings_of(config, checkpoint)
    if settings.classes is not None and list(settings.classes) != list(classes):
        raise UserError(
            f"{checkpoint.path} was trained on {len(settings.classes)} other classes"
            f" ({shortlist(settings.classes)}) than the {len(classes)} of this data set;"
            " give its data set, or start from its weights by --init_from in place of --resume"
        )
    outputs = len(checkpoint.state_dict["fc.weight"])
    if outputs != len(classes):
        raise UserError(
            f"{checkpoint.path} has {outputs} outputs and this data set {len(classes)} classes;"
            " give its data set, or start from its weights by --init_from in place of --resume"
        )
    if checkpoint.training is not None:
        compare_settings(config, checkpoint, logger)
    require_work_left(config, checkpoint)
    return replace(settings, classes=list(classes))


def require_work_left(config: Config, checkpoint: Checkpoint) -> None:
    """A finished run may be looked at again in its own folder; elsewhere it leaves nothing."""
    done = checkpoint.epoch
    if done >= config.passes and is_elsewhere(config, checkpoint):
        wanted = f"TRAIN.epochs {config.TRAIN.epochs}"
        if config.passes != config.TRAIN.epochs:
            wanted += f" in ADV.n_repeats {config.ADV.n_repeats}"
        raise UserError(
            f"{checkpoint.path} has {done} epochs of the data behind it, and {wanted} are"
            f" {config.passes}; raise TRAIN.epochs, or evaluate it by -e"
        )


def compare_settings(config: Config, checkpoint: Checkpoint, logger: Logger) -> None:
    """Refuse or mention settings that are not those the training was started with."""
    saved, now = checkpoint.content["config"], config.as_dict()
    fixed: list[str] = []
    for key, setting in SETTINGS.items():
        section, _, name = key.partition(".")
        # What the version that saved them did not have stood at what is its default today.
        was, value = saved.get(section, {}).get(name, plain(setting.default)), now[section][name]
        if was != value and setting.resume == "fixed":
            fixed.append(f"{key} {was}, now {value}")
        if was != value and setting.resume == "noted":
            logger.warning(f"{key} was {was} and is {value} from here on")
    if fixed:
        raise UserError(
            f"{checkpoint.path} is of another run ({'; '.join(fixed)}); resume with its settings,"
            " kept in config.yml beside it"
        )


def restore_state(
    checkpoint: Checkpoint,
    trainer: Trainer,
    context: DistributedContext,
    start_epoch: int,
    logger: Logger,
) -> Progress:
    """Resume from a checkpoint, bit by bit where it holds the state of a training.

    Args:
        start_epoch: the earliest pass to begin with, where the file holds no training state.
    """
    content, state = checkpoint.content, checkpoint.training
    restore_momentum(trainer.optimizer, content.get("optimizer"), checkpoint.path, logger)
    if state is None:
        epoch = max(checkpoint.epoch, start_epoch)
        taken = "weights and momentum" if content.get("optimizer") else "weights"
        logger.info(f"{taken} of {checkpoint.path}: epoch {epoch + 1} begins")
        return Progress(epoch=epoch)
    was, now = content.get("versions", {}), machine(context.device)
    if changes := [f"{k} {was[k]}, now {v}" for k, v in now.items() if was.get(k, v) != v]:
        logger.info(f"note: not bit by bit as it would have gone on: {'; '.join(changes)}")
    trainer.noise.copy_(state["noise"][context.rank :: context.world_size])
    if state["scaler"]:  # a training in fp32 or bf16 has none, and may be resumed in fp16
        trainer.scaler.load_state_dict(state["scaler"])
    if trainer.average is not None and "ema" in state:
        trainer.average.module.load_state_dict(state["ema"]["state_dict"])
        trainer.average.n_averaged.fill_(state["ema"]["n_averaged"])
    torch.set_rng_state(state["random_state"])
    progress = Progress(**{name: state[name] for name in vars(Progress()) if name in state})
    logger.info(
        f"resumed {checkpoint.path}: epoch {progress.epoch + 1}, minibatch {progress.position}"
    )
    return progress


def restore_momentum(
    optimizer: torch.optim.Optimizer, saved: Any, path: str, logger: Logger
) -> None:
    """Take the momentum buffers over; momentum and weight decay stay as configured now."""
    if saved is None:
        return
    now = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        names = {name for state in saved["state"].values() for name in state}
        if not names <= {"momentum_buffer"}:
            raise ValueError("not SGD's")
        optimizer.load_state_dict(saved)
        for parameter, state in optimizer.state.items():
            state["momentum_buffer"] = with_strides_of(parameter, state["momentum_buffer"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(f"{path}: its optimizer state does not fit ({error}); momentum begins at 0")
        optimizer.state.clear()
    for group, values in zip(optimizer.param_groups, now, strict=True):
        group.update(values)


def with_strides_of(parameter: torch.Tensor, buffer: torch.Tensor | None) -> torch.Tensor | None:
    """A buffer laid out in memory like its parameter: the fused step reads both as raw memory."""
    if buffer is None:
        return None
    if buffer.shape != parameter.shape:
        raise ValueError(f"momentum of shape {tuple(buffer.shape)}")
    return torch.empty_like(parameter).copy_(buffer)
