"""Which checkpoint a training resumes from, and whether it is the same training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lib.evaluation.model_settings import ModelSettings, settings_of
from utils.config.settings import SETTINGS, Config, number_of_passes, plain
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.checkpoint import Checkpoint, UnreadableCheckpoint, read_checkpoint
from utils.storage.run_folder import LATEST, PREVIOUS, find_checkpoint
from utils.text import shortlist

# What another phase of a training may have of its own.
PHASE_SETTINGS = (
    "DATA.batch_size",
    "DATA.crop_size",
    "DATA.img_size",
    "ADV.n_repeats",
    "TRAIN.method",
    "TRAIN.lr_epochs",
    "TRAIN.lr_values",
    "TRAIN.bn_weight_decay",
    "TRAIN.select_from",
)


def find_resumption(config: Config, folder: Path, logger: Logger) -> Checkpoint | None:
    """The checkpoint that `--resume` means, or None to start from scratch.

    `auto` takes the newest intact checkpoint of the run folder. Where there is none yet it starts
    from the phase before or from scratch, so that the same command starts and restarts a job.

    Raises:
        UserError: the file is missing, damaged or foreign beyond use.
    """
    wanted, start = config.OPTIONS.resume, config.OPTIONS.start_from
    if wanted not in ("", "auto"):
        return read_checkpoint(find_checkpoint(wanted))
    if not wanted:
        return read_checkpoint(start) if start else None
    there = [path for path in (folder / LATEST, folder / PREVIOUS) if path.exists()]
    for path in there:
        with suppress(UnreadableCheckpoint):
            return read_checkpoint(str(path))
        logger.warning(f"{path} is damaged; skipping it")
    if there:
        raise UserError(f"no checkpoint in {folder} is intact; start from scratch with --overwrite")
    if start:
        return read_checkpoint(start)
    logger.info(f"nothing to resume in {folder}: starting from scratch")
    return None


def begins_phase(config: Config, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is of a finished run, from whose weights another run starts."""
    if not checkpoint.is_ours or checkpoint.training is None or config.TRAIN.method == "free":
        return False
    saved = checkpoint.content["config"]
    method = saved["TRAIN"].get("method", "free")
    passes = number_of_passes(method, saved["TRAIN"]["epochs"], saved["ADV"]["n_repeats"])
    return checkpoint.epoch >= passes and is_elsewhere(config, checkpoint)


def is_elsewhere(config: Config, checkpoint: Checkpoint) -> bool:
    return Path(checkpoint.path).parent.resolve() != config.run_dir.resolve()


def require_same_run(
    config: Config,
    checkpoint: Checkpoint,
    classes: Sequence[str],
    new_phase: bool,
    logger: Logger,
) -> ModelSettings:
    """The settings of a network whose training continues.

    Args:
        new_phase: another crop, batch and method are no obstacle.

    Raises:
        UserError: the checkpoint is of another network, data set or procedure than the command
            says; the message has both values.
    """
    settings = settings_of(config, checkpoint)
    if settings.classes is not None and list(settings.classes) != list(classes):
        raise UserError(
            f"{checkpoint.path} was trained on {len(settings.classes)} other classes"
            f" ({shortlist(settings.classes)}) than the {len(classes)} of this data set;"
            " give its data set, or leave --resume out"
        )
    outputs = len(checkpoint.state_dict["fc.weight"])
    if outputs != len(classes):
        raise UserError(
            f"{checkpoint.path} has {outputs} outputs and this data set {len(classes)} classes;"
            " give its data set, or leave --resume out"
        )
    if checkpoint.is_ours:
        compare_settings(config, checkpoint, PHASE_SETTINGS if new_phase else (), logger)
    require_work_left(config, checkpoint)
    return replace(settings, classes=list(classes))


def require_work_left(config: Config, checkpoint: Checkpoint) -> None:
    """A finished run may be looked at again in its own folder; elsewhere it leaves nothing.

    Raises:
        UserError: the checkpoint has all passes behind it.
    """
    done = checkpoint.epoch
    if done >= config.passes and is_elsewhere(config, checkpoint):
        wanted = f"TRAIN.epochs {config.TRAIN.epochs}"
        if config.passes != config.TRAIN.epochs:
            wanted += f" in ADV.n_repeats {config.ADV.n_repeats}"
        raise UserError(
            f"{checkpoint.path} has {done} passes behind it, and {wanted} are {config.passes};"
            " raise TRAIN.epochs, or evaluate it by -e"
        )


def compare_settings(
    config: Config, checkpoint: Checkpoint, may_change: Sequence[str], logger: Logger
) -> None:
    """Refuse or mention settings that are not those the training was started with.

    Args:
        may_change: keys that are refused or mentioned otherwise.

    Raises:
        UserError: names every one that cannot change.
    """
    saved, now = checkpoint.content["config"], config.as_dict()
    changed: dict[str, list[tuple[str, object, object]]] = {"free": [], "noted": [], "fixed": []}
    for key, setting in SETTINGS.items():
        section, _, name = key.partition(".")
        # What the version that saved them did not have stood at what is its default today.
        was = saved.get(section, {}).get(name, plain(setting.default))
        if was != now[section][name] and key not in may_change:
            changed[setting.resume].append((key, was, now[section][name]))
    if changed["fixed"] and checkpoint.training is not None:
        differing = "; ".join(f"{key} {was}, now {value}" for key, was, value in changed["fixed"])
        raise UserError(
            f"{checkpoint.path} is of another run ({differing}); resume with its settings, kept"
            " in config.yml beside it"
        )
    for key, was, value in changed["noted"]:
        logger.warning(f"{key} was {was} and is {value} from here on")
