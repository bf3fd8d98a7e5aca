"""`-e`, `--eva_on_imagenet_c` and `--eva_on_shift`: set up, run, report."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lib.algorithm.protocols import PROTOCOLS, ThreatModel
from lib.data.folders import ImageTree
from lib.data.loader import share_of_workers
from lib.evaluation.attack_list import attack_list
from lib.evaluation.attacks import require_attackable
from lib.evaluation.checkpoint_model import (
    EvaluatedModel,
    announce,
    load_evaluated_model,
    load_images,
    make_provenance,
    with_sizes_of,
)
from lib.evaluation.checks import check_attacks, check_network, check_selection
from lib.evaluation.folder_counts import FolderEvaluation, FolderReading
from lib.evaluation.images import save_attack_images
from lib.evaluation.measured import class_order, measured_attacks, usual_attacks
from lib.evaluation.report import result_table, summarise, write_files
from lib.evaluation.runner import AttackEvaluation
from lib.evaluation.shift import evaluate_shift
from lib.evaluation.validation import EvaluationData
from lib.imagenet_c.evaluation import evaluate_imagenet_c
from lib.imagenet_c.scan import find_folders
from utils.config.ignored import ignored_settings
from utils.config.schema import Config, Source
from utils.distributed.context import DistributedContext
from utils.logging import Logger
from utils.storage.journal import remove_journals
from utils.storage.records import AttackResult
from utils.storage.results import measurement_at, result_stem
from utils.storage.run_folder import BEST, BEST_EMA


def evaluate(config: Config, context: DistributedContext) -> None:
    """What the flags ask for; the worker of `evaluate.py` and of `main_free.py -e`.

    Raises:
        UserError: bad input.
    """
    if hasattr(signal, "SIGUSR1"):  # "save": everything finished is on the disk already
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    logger = Logger(context.is_main)
    evaluated = context.run_and_share_errors(lambda: load_evaluated_model(config, context.device))
    for warning in ignored_settings(config, evaluated.settings.hypersphere):
        logger.warning(warning)
    config = with_sizes_of(config, evaluated)
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
    so runs of several seeds are attacked alike.
    """
    folder = config.run_dir
    config = config.changed({"RUN.seed": 0}, Source.BUILT_IN)
    logger = Logger(context.is_main)
    logger.write_to(folder / "log.txt")
    data = config.OPTIONS.data or config.DATA.imagenet
    for name in (BEST, BEST_EMA) if config.TRAIN.ema else (BEST,):
        best = str(folder / name)
        load = partial(load_evaluated_model, config, context.device, best)
        evaluated = context.run_and_share_errors(load)
        evaluate_attacks(config, context, logger, evaluated, data, again=False)


def data_folders(config: Config) -> tuple[str, str]:
    """DIRs of ImageNet and ImageNet-C. One DIR for both goes to the one that it looks like."""
    options, data = config.OPTIONS, config.DATA
    if not options.data:
        return data.imagenet, data.imagenet_c
    if options.evaluate and options.eva_on_imagenet_c:
        if os.path.isdir(os.path.join(options.data, "val")):
            return options.data, data.imagenet_c
        return data.imagenet, options.data
    return options.data, options.data


def evaluate_attacks(
    config: Config,
    context: DistributedContext,
    logger: Logger,
    evaluated: EvaluatedModel,
    data: str,
    again: bool = True,
) -> None:
    """Clean images and attacks on DIR/val: table, JSON, CSV, images.

    Args:
        again: evaluate anew when a result of the same checkpoint and settings is there.
    """
    options, protocol = config.OPTIONS, PROTOCOLS[config.EVAL.protocol]
    specs = attack_list(
        options.attack, config.ADV.pgd_attack, protocol, scales_of(config, evaluated, logger)
    )

    def prepare() -> tuple[ImageTree, dict[str, Any], str]:
        require_attackable(specs, evaluated.model.num_classes)
        return load_images(config, data, evaluated)

    tree, subset, subset_name = context.from_main(prepare)
    measured = measured_attacks(config, evaluated, specs, subset, subset_name)
    stem = result_stem(evaluated.folder, measured, usual_attacks(measured, evaluated))
    stem = context.gather(stem)[0]
    provenance = make_provenance(config, evaluated, subset, context)
    announce(evaluated, f"attacks on {subset['description']} of {data}/val", logger)
    for note in tree.notes:
        logger.warning(note)
    if options.n_examples and options.n_examples > subset["n"]:
        logger.warning(f"--n_examples {options.n_examples}: there are only {subset['n']} images")
    if not again and measurement_at(stem) == measured:
        logger.info(f"{stem}.json holds this evaluation already")
        return
    evaluation = AttackEvaluation(
        evaluated.model,
        evaluation_data(config, tree, context),
        ThreatModel(config.eps, protocol, config.RUN.seed, config.EVAL.precision),
        logger,
        stem,
        measured.fingerprint(),
        config.EVAL.cascade,
        torch.compile(evaluated.model.outputs) if config.EVAL.compile else None,
    )
    rows = evaluation.run(specs)
    warnings = check_network(evaluated.model, evaluation.data) + check_attacks(rows, specs)
    warnings += check_selection(Path(evaluated.identity["path"]).name, evaluated.trained)
    warnings += sorted(set().union(*context.gather(evaluation.warnings)))
    result = summarise(rows, specs, measured, provenance, warnings)
    if context.is_main:
        write_files(stem, result, tree, rows, specs, evaluated.settings.classes)
        remove_journals(stem)
        tell(result, stem, logger)
        if options.save_images:
            save_attack_images(
                evaluation, rows, specs, options.save_images, stem, evaluated.settings
            )
    context.barrier()


def tell(result: AttackResult, stem: Path, logger: Logger) -> None:
    """The table, what is to be doubted about it, and where the rest is."""
    logger.info(result_table(result))
    for warning in result.warnings:
        logger.warning(warning)
    logger.info(f"results: {stem}.json, _images.csv, _classes.csv")


def evaluation_data(config: Config, tree: ImageTree, context: DistributedContext) -> EvaluationData:
    """How the images are read: this process's share of batch size and workers."""
    data = config.DATA
    share = max(1, data.batch_size // context.world_size)
    workers = share_of_workers(data.workers)
    return EvaluationData(tree, data.img_size, data.crop_size, share, workers, context)


def scales_of(config: Config, evaluated: EvaluatedModel, logger: Logger) -> Sequence[float]:
    """`EVAL.scales`, which mean something for a hypersphere head alone."""
    if config.EVAL.scales and not evaluated.settings.hypersphere:
        logger.warning("EVAL.scales is ignored: the network has no hypersphere head")
        return ()
    return config.EVAL.scales


def evaluate_corruptions(
    config: Config,
    context: DistributedContext,
    logger: Logger,
    evaluated: EvaluatedModel,
    data: str,
) -> None:
    """ImageNet-C: table, JSON, CSV, figure."""
    announce(evaluated, f"ImageNet-C at {data}", logger)
    evaluation = folder_evaluation(config, context, logger, evaluated)
    options, protocol = config.OPTIONS, PROTOCOLS[config.EVAL.protocol]
    evaluate_imagenet_c(evaluation, data, protocol, options.corruptions, options.clean_accuracy)


def evaluate_test_sets(
    config: Config, context: DistributedContext, logger: Logger, evaluated: EvaluatedModel
) -> None:
    """Shifted test sets: table, JSON, CSV, figure."""
    data = config.OPTIONS.data or ""
    announce(evaluated, f"shifted test sets at {data}", logger)
    evaluate_shift(folder_evaluation(config, context, logger, evaluated), data)


def folder_evaluation(
    config: Config, context: DistributedContext, logger: Logger, evaluated: EvaluatedModel
) -> FolderEvaluation:
    """The network and how images are read, for ImageNet-C and shifted test sets."""
    options, data = config.OPTIONS, config.DATA
    own = (evaluated.trained or Config().as_dict())["DATA"]
    batch_size = max(1, data.batch_size // context.world_size)
    workers = share_of_workers(data.workers)
    return FolderEvaluation(
        model=evaluated.model,
        num_classes=evaluated.model.num_classes,
        class_names=evaluated.settings.classes,
        reading=FolderReading(data.img_size, data.crop_size, batch_size, workers),
        context=context,
        logger=logger,
        folder=evaluated.folder,
        provenance=make_provenance(config, evaluated, {}, context),
        class_order=class_order(config, evaluated),
        n_examples=options.n_examples,
        image_ids=options.image_ids,
        usual_sizes=(own["img_size"], own["crop_size"]),
        checkpoint_name=evaluated.tag.removeprefix("_"),
    )
