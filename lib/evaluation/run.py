"""`-e` and `--eva_on_imagenet_c`: set up, run, report."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
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
from lib.evaluation.checks import check_attacks, check_network
from lib.evaluation.images import save_attack_images
from lib.evaluation.report import result_table, summarise, write_results
from lib.evaluation.runner import AttackEvaluation
from lib.evaluation.validation import EvaluationData
from lib.imagenet_c.corruptions import choose_corruptions
from lib.imagenet_c.evaluation import evaluate_imagenet_c
from lib.imagenet_c.scan import find_folders
from utils.config.ignored import ignored_settings
from utils.config.schema import Config
from utils.distributed.context import DistributedContext
from utils.logging import Logger
from utils.storage.checkpoint import BEST
from utils.storage.journal import remove_journals


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
        names = choose_corruptions(config.OPTIONS.corruptions)
        context.run_and_share_errors(lambda: find_folders(imagenet_c, names))
    if config.OPTIONS.evaluate:
        evaluate_attacks(config, context, logger, evaluated, imagenet)
    if config.OPTIONS.eva_on_imagenet_c:
        evaluate_corruptions(config, context, logger, evaluated, imagenet_c)


def evaluate_trained(config: Config, context: DistributedContext) -> None:
    """Attack the best model at the end of training, unless that was done before."""
    logger = Logger(context.is_main)
    logger.write_to(config.run_dir / "log.txt")
    best = str(config.run_dir / BEST)
    evaluated = context.run_and_share_errors(
        lambda: load_evaluated_model(config, context.device, best)
    )
    data = config.OPTIONS.data or config.DATA.imagenet
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

    tree, subset, tag = context.run_and_share_errors(prepare)
    tag += eps_tag(config, evaluated)
    stem = (
        evaluated.folder / f"attack_{protocol.name}{evaluated.tag}{attack_tag(options.attack)}{tag}"
    )
    if config.EVAL.cascade:
        stem = stem.with_name(f"{stem.name}_cascade")
    provenance = make_provenance(config, evaluated, subset, context)
    announce(evaluated, f"attacks on {subset['description']} of {data}/val", logger)
    if options.n_examples and options.n_examples > subset["n"]:
        logger.warning(f"--n_examples {options.n_examples}: there are only {subset['n']} images")
    if not again and is_done(stem, provenance):
        logger.info(f"{stem}.json holds this evaluation already")
        return
    evaluation = AttackEvaluation(
        evaluated.model,
        evaluation_data(config, tree, context),
        ThreatModel(config.eps, protocol, config.RUN.seed, config.EVAL.precision),
        logger,
        stem,
        fingerprint(provenance),
        config.EVAL.cascade,
        torch.compile(evaluated.model.outputs) if config.EVAL.compile else None,
    )
    rows = evaluation.run(specs)
    result = {"kind": "attack", "provenance": provenance}
    result |= summarise(rows, specs, protocol, config.EVAL.cascade, evaluated.model.scale)
    warnings = check_network(evaluated.model, evaluation.data) + check_attacks(rows, specs)
    warnings += sorted(set().union(*context.gather(evaluation.warnings)))
    result["warnings"] = warnings
    if context.is_main:
        write_results(stem, result, tree, rows, specs)
        remove_journals(stem)
        tell(result, stem, logger)
        if options.save_images:
            save_attack_images(
                evaluation, rows, specs, options.save_images, stem, evaluated.settings
            )
    context.barrier()


def tell(result: Mapping[str, Any], stem: Path, logger: Logger) -> None:
    """The table, what is to be doubted about it, and where the rest is."""
    logger.info(result_table(result))
    for warning in result["warnings"]:
        logger.warning(warning)
    logger.info(f"results: {stem}.json, {stem}_images.csv")


def evaluation_data(config: Config, tree: ImageTree, context: DistributedContext) -> EvaluationData:
    """How the images are read: this process's share of batch size and workers."""
    data = config.DATA
    share = max(1, data.batch_size // context.world_size)
    workers = share_of_workers(data.workers, context.world_size)
    return EvaluationData(tree, data.img_size, data.crop_size, share, workers, context)


def scales_of(config: Config, evaluated: EvaluatedModel, logger: Logger) -> Sequence[float]:
    """`EVAL.scales`, which mean something for a hypersphere head alone."""
    if config.EVAL.scales and not evaluated.settings.hypersphere:
        logger.warning("EVAL.scales is ignored: the network has no hypersphere head")
        return ()
    return config.EVAL.scales


def attack_tag(names: Sequence[str]) -> str:
    """What `--attack` adds to the names of the result files."""
    return "_" + "+".join(names) if names else ""


def eps_tag(config: Config, evaluated: EvaluatedModel) -> str:
    """What another eps than that of the training adds to the names of the result files."""
    eps = config.ADV.clip_eps
    other = evaluated.trained is not None and evaluated.trained["ADV"]["clip_eps"] != eps
    return f"_eps{eps:g}" if other else ""


def fingerprint(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What an interrupted evaluation must have in common with the one that goes on."""
    keys = ("protocol", "precision", "eps", "seed")
    data = provenance["config"]["DATA"]
    return {
        "checkpoint": provenance["checkpoint"]["sha256"],
        "images": provenance["subset"]["sha256"],
        "resize and crop": [data["img_size"], data["crop_size"]],
        "step sizes": sorted({row[1] for row in provenance["config"]["ADV"]["pgd_attack"]}),
        **{key: provenance[key] for key in keys},
    }


def is_done(stem: Path, provenance: Mapping[str, Any]) -> bool:
    """Whether a result of the same checkpoint, images and attacks is there."""
    try:
        found = json.loads(stem.with_suffix(".json").read_text())["provenance"]
    except (OSError, ValueError, KeyError):
        return False
    same = fingerprint(found) == fingerprint(provenance)
    return same and found["config"]["ADV"] == provenance["config"]["ADV"]


def evaluate_corruptions(
    config: Config,
    context: DistributedContext,
    logger: Logger,
    evaluated: EvaluatedModel,
    data: str,
) -> None:
    """ImageNet-C: table, JSON, CSV, figure."""
    options, settings, protocol = config.OPTIONS, config.DATA, PROTOCOLS[config.EVAL.protocol]
    announce(evaluated, f"ImageNet-C at {data}", logger)
    name = f"imagenet_c_{protocol.name}{evaluated.tag}"
    if options.corruptions:
        name += "_" + "+".join(options.corruptions)
    if options.n_examples:
        name += f"_n{options.n_examples}"
    elif options.image_ids:
        name += f"_{Path(options.image_ids).stem}"
    evaluate_imagenet_c(
        evaluated.model,
        data,
        evaluated.settings.classes,
        protocol=protocol,
        corruptions=options.corruptions,
        img_size=settings.img_size,
        crop_size=settings.crop_size,
        batch_size=max(1, settings.batch_size // context.world_size),
        workers=share_of_workers(settings.workers, context.world_size),
        context=context,
        output_stem=evaluated.folder / name,
        provenance=make_provenance(config, evaluated, {}, context),
        logger=logger,
        clean_accuracy=options.clean_accuracy,
        n_examples=options.n_examples,
        image_ids=options.image_ids,
    )
