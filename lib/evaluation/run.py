"""`-e`, `--eva_on_imagenet_c` and `--eva_on_shift`: set up, run, report."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lib.algorithm.protocols import AttackSpec, AutoAttackSpec, ThreatModel
from lib.data.folders import ImageTree, read_split
from lib.data.loader import share_of_workers
from lib.evaluation.attacks import attacks_by_ball, for_classes
from lib.evaluation.autoattack import require_package
from lib.evaluation.evaluate import CLEAN, Evaluation, Rows
from lib.evaluation.load_model import EvaluatedModel, load_evaluated_model, load_surrogate
from lib.evaluation.masking import check_attacks, check_network, check_reach, check_selection
from lib.evaluation.report import report, save_attack_images, say
from lib.evaluation.shift import evaluate_shift
from lib.evaluation.task import EvaluationData, Task, with_trained_settings
from lib.imagenet_c.corruptions import find_folders
from lib.imagenet_c.evaluate import evaluate_imagenet_c
from utils.config.load import ignored_settings
from utils.config.settings import Config, Source
from utils.distributed.context import DistributedContext
from utils.figures.evaluation import curves_of, robustness, weak_attack_signs
from utils.figures.style import save_figure
from utils.logging import Logger
from utils.storage.conditions import LONGEST_NAME, Conditions, length_number, length_text
from utils.storage.files import make_folder, names_sha256
from utils.storage.results import conditions_at, find_results, read_result
from utils.storage.run_folder import BEST, BEST_EMA


def evaluate(config: Config, context: DistributedContext) -> None:
    """What the flags ask for; the worker of `evaluate.py` and of `main_free.py -e`.

    Raises:
        UserError: bad input.
    """

    def load() -> EvaluatedModel:
        evaluated = load_evaluated_model(config, context.device)
        hint = "choose another folder for the results with --output DIR"
        make_folder(evaluated.folder, hint)
        return evaluated

    logger = Logger(context.is_main)
    evaluated = context.run_and_share_errors(load)
    for note in evaluated.notes:
        logger.info(note)
    for warning in ignored_settings(config, evaluated.settings.hypersphere):
        logger.warning(warning)
    task = Task(with_trained_settings(config, evaluated, logger), context, logger, evaluated)
    imagenet_c = config.DATA.imagenet_c
    if config.OPTIONS.eva_on_imagenet_c:  # before hours of attacks, perhaps
        context.from_main(lambda: find_folders(imagenet_c, config.OPTIONS.corruptions))
    if config.OPTIONS.eva_on_shift:
        evaluate_shift(task, config.OPTIONS.data or "")
    if config.OPTIONS.evaluate:
        evaluate_attacks(task)
    if config.OPTIONS.eva_on_imagenet_c:
        evaluate_imagenet_c(task, imagenet_c)


def evaluate_trained(config: Config, context: DistributedContext) -> None:
    """Attack the best models at the end of training, unless that was done before.

    The attacks draw from seed 0 whatever the training's seed is, as `evaluate.py` does by default:
    so runs of several seeds are attacked in the same way.
    """
    folder, logger = config.run_dir, Logger(context.is_main)
    logger.write_to(folder / "log.txt")
    for name in (BEST, BEST_EMA) if config.TRAIN.ema else (BEST,):
        values = {"RUN.seed": 0, "resume": str(folder / name), "weights": ""}
        call = config.changed(values, Source.BUILT_IN)
        load = partial(load_evaluated_model, call, context.device)
        evaluated = context.run_and_share_errors(load)
        evaluate_attacks(Task(call, context, logger, evaluated), again=False)


def evaluate_attacks(task: Task, again: bool = True) -> None:
    """Clean images and attacks on DIR/val: table, JSON, CSV, images; for several radii a curve.

    Args:
        again: evaluate again when a result of the same checkpoint and settings is there. Of several
            radii those that are there are never evaluated again, so that a curve is resumed.
    """
    config, context, logger, evaluated = task.config, task.context, task.logger, task.evaluated
    attacks, tree, subset = context.from_main(partial(prepare, task))
    load = partial(load_surrogate, config, context.device, evaluated)
    surrogate = context.run_and_share_errors(load)
    task.announce(f"attacks on {subset['description']} of {config.DATA.imagenet}/val")
    if surrogate is not None:
        logger.info(f"attacked is {surrogate.identity['path']}: {surrogate.settings.describe()}")
    sizes = config.DATA.img_size, config.DATA.crop_size, config.EVAL.batch_size
    workers = share_of_workers(config.DATA.workers, context)
    way = config.DATA.interpolation
    images = EvaluationData(tree, *sizes, workers, context, interpolation=way)
    radius_source = config.source("EVAL.eps" if config.EVAL.eps else "ADV.clip_eps").value
    clean: dict[str, Rows] = {}  # known from the first radius on
    stems: list[Path] = []
    for threat, specs in attacks.items():
        evaluation = Evaluation(task, surrogate, images, subset, threat, specs, dict(clean))
        stem = context.from_main(evaluation.find_stem)
        logger.info(f"eps {length_text(threat.eps, threat.norm)}, from {radius_source}")
        is_there = context.from_main(partial(conditions_at, stem)) == evaluation.conditions
        if config.OPTIONS.save_images:
            is_there &= context.from_main(Path(f"{stem}_images.png").exists)
        if is_there and (len(attacks) > 1 or not again):
            logger.info(f"{stem}.json holds this evaluation already")
            if context.is_main:
                say(logger, read_result(Path(f"{stem}.json")))
            stems.append(stem)
            continue
        remarks = run_attacks(evaluation)
        clean = {CLEAN: evaluation.rows[CLEAN]}
        passes = sum(context.gather(evaluation.passes), Counter[str]())
        if context.is_main:
            provenance = task.provenance(subset) | {"passes": passes}
            provenance |= {} if surrogate is None else {"surrogate": surrogate.identity}
            stem = evaluation.find_stem()  # another may have taken the name meanwhile
            report(evaluation, stem, provenance, *remarks)
            if config.OPTIONS.save_images:
                save_attack_images(evaluation, stem, config.OPTIONS.save_images)
        stems.append(stem)
    if context.is_main and len(attacks) > 1:
        draw_curve(stems, evaluation)
    context.barrier()


def prepare(
    task: Task,
) -> tuple[dict[ThreatModel, list[AttackSpec]], ImageTree, dict[str, Any]]:
    """What may be refused, before anything is measured: attacks by ball, images, the subset."""
    config, evaluated = task.config, task.evaluated
    # Scales mean something for a hypersphere head alone.
    scales = config.EVAL.scales if evaluated.settings.hypersphere else ()
    attacks = {
        threat: for_classes(specs, evaluated.model.num_classes)
        for threat, specs in attacks_by_ball(config, scales).items()
    }
    if any(isinstance(spec, AutoAttackSpec) for specs in attacks.values() for spec in specs):
        require_package()
    whole = task.with_labels(read_split(config.DATA.imagenet, "val"))
    tree = task.pick(whole)
    return attacks, tree, task.subset(len(tree.files), len(whole.files), tree.fingerprint)


def run_attacks(evaluation: Evaluation) -> tuple[list[str], list[str]]:
    """Run them; what casts doubt on the numbers, and what else to know about them."""
    evaluated, logger = evaluation.task.evaluated, evaluation.task.logger
    unreachable, notes = check_reach(evaluation.specs, evaluation.threat)
    for warning in unreachable:  # before hours of work, perhaps
        logger.warning(warning)
    evaluation.run()
    own = evaluation.data.context.gather(evaluation.warnings)
    biased, chosen = check_selection(Path(evaluated.identity["path"]).name, evaluated.trained)
    warnings = [
        *evaluation.data.tree.notes,
        *unreachable,
        *check_network(evaluated.model, evaluation.data),
        *check_attacks(evaluation.rows, evaluation.specs),
        *biased,
        *sorted(set().union(*own)),
    ]
    return warnings, [*notes, *chosen]


def draw_curve(stems: Sequence[Path], last: Evaluation) -> None:
    """The figure of accuracy against the radius, and signs of a weak attack in it."""
    results = find_results([Path(f"{stem}.json") for stem in stems])
    (curve,) = curves_of(results).values()
    for warning in weak_attack_signs(curve):
        last.task.logger.warning(warning)
    radii = [length_number(r.conditions.eps, r.conditions.norm) for r in curve]
    path = curve_path(stems[-1], last.conditions, last.usual, radii)
    save_figure(robustness({last.task.evaluated.settings.describe(): [curve]}), path)
    last.task.logger.info(f"curve: {path}.png, .pdf")


def curve_path(
    stem: Path, conditions: Conditions, usual: Mapping[str, Any], radii: Sequence[str]
) -> Path:
    """The curve's files without extension: a radius's `stem` without it, and all of them.

    Many radii stand as a digest.
    """
    digest = stem.name.removeprefix(conditions.file_name(usual))  # where there was one
    name = replace(conditions, eps=usual["eps"]).file_name(usual) + digest + "_curve"
    path = stem.with_name(f"{name}_eps{'+'.join(radii)}")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        path = stem.with_name(f"{name}_{names_sha256(radii)[:8]}")
    return path
