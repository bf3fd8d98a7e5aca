"""`-e`, `--eva_on_imagenet_c` and `--eva_on_shift`: set up, run, report."""

import os
from functools import partial

from lib.algorithm.protocols import PROTOCOLS
from lib.data.loader import share_of_workers
from lib.evaluation.attack_run import evaluate_attacks, network_text
from lib.evaluation.folder_counts import FolderEvaluation
from lib.evaluation.load_model import (
    EvaluatedModel,
    announce,
    load_evaluated_model,
    make_provenance,
    with_trained_settings,
)
from lib.evaluation.shift import evaluate_shift
from lib.imagenet_c.evaluate import evaluate_imagenet_c
from lib.imagenet_c.tree import find_folders
from utils.config.rules import ignored_settings
from utils.config.settings import Config, Source
from utils.distributed.context import DistributedContext
from utils.logging import Logger
from utils.storage.conditions import Conditions
from utils.storage.run_folder import BEST, BEST_EMA


def evaluate(config: Config, context: DistributedContext) -> None:
    """What the flags ask for; the worker of `evaluate.py` and of `main_free.py -e`.

    Raises:
        UserError: bad input.
    """
    logger = Logger(context.is_main)
    evaluated = context.run_and_share_errors(lambda: load_evaluated_model(config, context.device))
    for warning in ignored_settings(config, evaluated.settings.hypersphere):
        logger.warning(warning)
    config = with_trained_settings(config, evaluated, logger)
    imagenet, imagenet_c = data_folders(config)
    if config.OPTIONS.eva_on_imagenet_c:  # before hours of attacks, perhaps
        context.from_main(lambda: find_folders(imagenet_c, config.OPTIONS.corruptions))
    if config.OPTIONS.eva_on_shift:
        evaluate_test_sets(config, context, logger, evaluated)
    if config.OPTIONS.evaluate:
        evaluate_attacks(config, context, logger, evaluated, imagenet)
    if config.OPTIONS.eva_on_imagenet_c:
        evaluate_corruptions(config, context, logger, evaluated, imagenet_c)


def evaluate_trained(config: Config, context: DistributedContext) -> None:
    """Attack the best models at the end of training, unless that was done before.

    The attacks draw from seed 0 whatever the training's seed is, as `evaluate.py` does by default:
    so runs of several seeds are attacked in the same way.
    """
    folder = config.run_dir
    config = config.changed({"RUN.seed": 0}, Source.BUILT_IN)
    logger = Logger(context.is_main)
    logger.write_to(folder / "log.txt")
    for name in (BEST, BEST_EMA) if config.TRAIN.ema else (BEST,):
        best = str(folder / name)
        load = partial(load_evaluated_model, config, context.device, best)
        evaluated = context.run_and_share_errors(load)
        evaluate_attacks(config, context, logger, evaluated, config.DATA.imagenet, again=False)


def data_folders(config: Config) -> tuple[str, str]:
    """DIRs of ImageNet and ImageNet-C. One DIR for both goes to the one that it looks like."""
    options, data = config.OPTIONS, config.DATA
    if options.data and options.evaluate and options.eva_on_imagenet_c:
        if os.path.isdir(os.path.join(options.data, "val")):
            return options.data, data.imagenet_c
        return data.imagenet, options.data
    return data.imagenet, data.imagenet_c


def evaluate_corruptions(
    config: Config,
    context: DistributedContext,
    logger: Logger,
    evaluated: EvaluatedModel,
    data: str,
) -> None:
    """ImageNet-C: table, JSON, CSV, figure."""
    announce(evaluated, f"corruptions at {data}", logger)
    protocol = PROTOCOLS[config.EVAL.protocol]
    resize = config.DATA.img_size if protocol.resize_imagenet_c else None
    evaluation = folder_evaluation(
        config, context, logger, evaluated, "imagenet_c", protocol.name, resize
    )
    options = config.OPTIONS
    evaluate_imagenet_c(evaluation, data, options.corruptions, options.clean_accuracy)


def evaluate_test_sets(
    config: Config, context: DistributedContext, logger: Logger, evaluated: EvaluatedModel
) -> None:
    """Shifted test sets: table, JSON, CSV, figure."""
    data = config.OPTIONS.data or ""
    announce(evaluated, f"shifted test sets at {data}", logger)
    resize = config.DATA.img_size
    evaluation = folder_evaluation(config, context, logger, evaluated, "shift", "standard", resize)
    evaluate_shift(evaluation, data)


def folder_evaluation(
    config: Config,
    context: DistributedContext,
    logger: Logger,
    evaluated: EvaluatedModel,
    kind: str,
    protocol: str,
    resize: int | None,
) -> FolderEvaluation:
    """The network and how images are read; `resize` to this shorter side, or only cropped."""
    trained = (evaluated.trained or Config().as_dict())["DATA"]
    return FolderEvaluation(
        evaluated=evaluated,
        conditions=Conditions(
            kind=kind,
            protocol=protocol,
            checkpoint=evaluated.identity["sha256"],
            images="",
            resize=resize,
            crop=config.DATA.crop_size,
            network=network_text(config, evaluated),
            checkpoint_file=evaluated.file_name,
        ),
        usual={
            "resize": None if resize is None else trained["img_size"],
            "crop": trained["crop_size"],
        },
        provenance=make_provenance(config, evaluated, {}, context),
        class_order=config.DATA.class_order,
        n_examples=config.OPTIONS.n_examples,
        image_ids=config.OPTIONS.image_ids,
        batch_size=config.EVAL.batch_size,
        workers=share_of_workers(config.DATA.workers, context),
        context=context,
        logger=logger,
    )
