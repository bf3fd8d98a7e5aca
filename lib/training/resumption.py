"""Which checkpoint a training goes on from, and whether it is the same training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lib.algorithm.schedules import number_of_passes
from lib.evaluation.model_settings import ModelSettings, settings_of
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.checkpoint import (
    LATEST,
    PREVIOUS,
    Checkpoint,
    UnreadableCheckpoint,
    read_checkpoint,
)
from utils.storage.run_folder import find_checkpoint

# Another value of these would make the saved state meaningless.
FIXED = (
    ("DATA", "batch_size"),
    ("DATA", "crop_size"),
    ("ADV", "n_repeats"),
    ("RUN", "seed"),
)
# These may be changed on purpose; the run then is no longer the one that was started.
NOTED = (
    *(("TRAIN", key) for key in ("lr", "momentum", "weight_decay", "precision", "select")),
    ("ADV", "clip_eps"),
    ("ADV", "fgsm_step"),
    *(("DATA", key) for key in ("img_size", "min_area", "flip")),
)


def find_resumption(config: Mapping[str, Any], folder: Path, logger: Logger) -> Checkpoint | None:
    """The checkpoint that `--resume` means, or None to start anew.

    `auto` takes the newest whole checkpoint of the run folder, and starts anew where there is
    none yet, so that the same command starts and restarts a job.

    Raises:
        UserError: the file is missing, damaged or foreign beyond use.
    """
    wanted = config["OPTIONS"].resume
    if not wanted:
        return None
    if wanted != "auto":
        return read_checkpoint(find_checkpoint(wanted))
    there = [path for path in (folder / LATEST, folder / PREVIOUS) if path.exists()]
    for path in there:
        with suppress(UnreadableCheckpoint):
            return read_checkpoint(str(path))
        logger.warning(f"{path} is damaged; passing over it")
    if there:
        raise UserError(f"no checkpoint in {folder} is whole; start again with --overwrite")
    logger.info(f"nothing to resume in {folder}: starting anew")
    return None


def require_same_run(
    config: Mapping[str, Any], checkpoint: Checkpoint, classes: Sequence[str], logger: Logger
) -> ModelSettings:
    """The settings of a training that goes on.

    Raises:
        UserError: the checkpoint is of another network, data set or procedure than the command
            says; the message has both values.
    """
    settings = settings_of(config, checkpoint)
    if settings.classes is not None and list(settings.classes) != list(classes):
        raise UserError(
            f"{checkpoint.path} was trained on {len(settings.classes)} other classes"
            f" ({', '.join(settings.classes[:3])}, ...) than the {len(classes)} of this data set;"
            " give its data set, or leave --resume out"
        )
    outputs = len(checkpoint.state_dict["fc.weight"])
    if outputs != len(classes):
        raise UserError(
            f"{checkpoint.path} has {outputs} outputs and this data set {len(classes)} classes;"
            " give its data set, or leave --resume out"
        )
    if checkpoint.is_ours:
        compare_settings(config, checkpoint, logger)
    require_work_left(config, checkpoint)
    return ModelSettings(**{**settings.as_dict(), "classes": list(classes)})


def require_work_left(config: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """A finished run may be looked at again in its own folder; elsewhere it leaves nothing.

    Raises:
        UserError: the checkpoint has all passes behind it.
    """
    passes = number_of_passes(config["TRAIN"].epochs, config["ADV"].n_repeats)
    done = checkpoint.content.get("epoch")
    elsewhere = Path(checkpoint.path).parent.resolve() != Path(config["DERIVED"].run_dir).resolve()
    if isinstance(done, int) and done >= passes and elsewhere:
        raise UserError(
            f"{checkpoint.path} has {done} passes behind it, and TRAIN.epochs"
            f" {config['TRAIN'].epochs} in ADV.n_repeats {config['ADV'].n_repeats} are {passes};"
            " raise TRAIN.epochs, or evaluate it by -e"
        )


def compare_settings(config: Mapping[str, Any], checkpoint: Checkpoint, logger: Logger) -> None:
    """Refuse or mention settings that are not those the training was started with.

    Raises:
        UserError: names every one that cannot change.
    """
    saved = checkpoint.content["config"]
    fixed = [*FIXED, ("TRAIN", "arch"), *(("HE", key) for key in config["HE"])]
    differing = [
        f"{section}.{key} {saved[section][key]}, now {config[section][key]}"
        for section, key in fixed
        if saved[section][key] != config[section][key]
    ]
    if differing and checkpoint.training is not None:
        raise UserError(
            f"{checkpoint.path} is of another run ({'; '.join(differing)}); resume with its"
            " settings, kept in config.yml beside it"
        )
    for section, key in NOTED:
        if saved[section][key] != config[section][key]:
            logger.warning(
                f"{section}.{key} was {saved[section][key]} and is {config[section][key]} from"
                " here on"
            )
