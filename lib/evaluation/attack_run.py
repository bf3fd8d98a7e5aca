"""`-e`: attacks on a checkpoint, an evaluation for every radius; from settings to files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lib.algorithm.protocols import AttackSpec, AutoAttackSpec, ThreatModel
from lib.data.folders import ImageTree
from lib.data.loader import share_of_workers
from lib.evaluation.attack_list import attack_list, for_classes
from lib.evaluation.autoattack import require_package
from lib.evaluation.checks import check_attacks, check_network, check_reach, check_selection
from lib.evaluation.images import save_attack_images
from lib.evaluation.load_model import (
    EvaluatedModel,
    announce,
    load_images,
    load_surrogate,
    make_provenance,
)
from lib.evaluation.measured import attack_conditions, threat_models, usual_conditions
from lib.evaluation.report import result_table, summarise, write_files
from lib.evaluation.runner import CLEAN, AttackEvaluation, Rows
from lib.evaluation.validation import EvaluationData
from utils.config.settings import Config
from utils.distributed.context import DistributedContext
from utils.figures.robustness import curves_of, robustness, weak_attack_warnings
from utils.figures.style import save_figure
from utils.logging import Logger
from utils.storage.conditions import LONGEST_NAME, Conditions, length_number, length_text
from utils.storage.files import names_sha256
from utils.storage.journal import remove_journals
from utils.storage.results import AttackResult, conditions_at, read_result, result_stem


@dataclass(frozen=True)
class AttackRun:
    """What all radii share.

    Attributes:
        surrogate: the network that is attacked, where it is not `evaluated`.
        subset: description, n and sha256 of the images; `subset_name` is what files are named by.
    """

    config: Config
    context: DistributedContext
    logger: Logger
    evaluated: EvaluatedModel
    surrogate: EvaluatedModel | None
    data: EvaluationData
    subset: Mapping[str, Any]
    subset_name: str


def evaluate_attacks(
    config: Config,
    context: DistributedContext,
    logger: Logger,
    evaluated: EvaluatedModel,
    data: str,
    again: bool = True,
) -> None:
    """Clean images and attacks on DIR/val: table, JSON, CSV, images; for several radii a curve.

    Args:
        again: evaluate again when a result of the same checkpoint and settings is there. Of several
            radii those that are there are never evaluated again, so that a curve is resumed.
    """

    def prepare() -> tuple[ImageTree, dict[str, Any], str]:
        for threat in threat_models(config):
            specs = specs_of(config, evaluated, threat)
            if any(isinstance(spec, AutoAttackSpec) for spec in specs):
                require_package()
        return load_images(config, data, evaluated)

    tree, subset, subset_name = context.from_main(prepare)
    surrogate = load_surrogate(config, context, evaluated)
    announce(evaluated, f"attacks on {subset['description']} of {data}/val", logger)
    if surrogate is not None:
        logger.info(f"attacked is {surrogate.identity['path']}: {surrogate.settings.describe()}")
    warn(config, evaluated, tree, logger)
    images = evaluation_data(config, tree, context, logger)
    run = AttackRun(config, context, logger, evaluated, surrogate, images, subset, subset_name)
    threats, stems = threat_models(config), []
    clean: Rows | None = None
    for threat in threats:
        stem, clean = evaluate_ball(run, threat, again and len(threats) == 1, clean)
        stems.append(stem)
    if context.is_main and len(threats) > 1:
        draw_curve(run, stems)
    context.barrier()


def specs_of(config: Config, evaluated: EvaluatedModel, threat: ThreatModel) -> list[AttackSpec]:
    """The attacks in a ball; EVAL.scales mean something for a hypersphere head alone."""
    scales = config.EVAL.scales if evaluated.settings.hypersphere else ()
    specs = attack_list(
        config.OPTIONS.attack,
        config.ADV.pgd_attack,
        threat.protocol,
        scales,
        threat.norm,
        threat.eps,
    )
    return for_classes(specs, evaluated.model.num_classes)


def warn(config: Config, evaluated: EvaluatedModel, tree: ImageTree, logger: Logger) -> None:
    """What is ignored or looks odd before anything is measured."""
    for note in tree.notes:
        logger.warning(note)
    wanted, there = config.OPTIONS.n_examples, len(tree.files)
    if wanted and wanted > there:
        logger.warning(f"--n_examples {wanted}: there are only {there} images")
    if config.EVAL.scales and not evaluated.settings.hypersphere:
        logger.warning("EVAL.scales is ignored: the network has no hypersphere head")


def evaluation_data(
    config: Config, tree: ImageTree, context: DistributedContext, logger: Logger
) -> EvaluationData:
    """How the images are read by this process."""
    data = config.DATA
    workers = share_of_workers(data.workers, context)
    sizes = data.img_size, data.crop_size, config.EVAL.batch_size
    return EvaluationData(tree, *sizes, workers, context, logger.warning)


def evaluate_ball(
    run: AttackRun, threat: ThreatModel, again: bool, clean: Rows | None
) -> tuple[Path, Rows | None]:
    """One evaluation: table, JSON, CSV, images.

    Args:
        again: evaluate even where the result is there.
        clean: rows of the clean images, where they are known.

    Returns:
        The files' path without extension, and the clean rows if they are known now.
    """
    specs = specs_of(run.config, run.evaluated, threat)
    conditions = attack_conditions(
        run.config, run.evaluated, run.surrogate, threat, specs, run.subset, run.subset_name
    )
    stem = result_stem(
        run.evaluated.folder, conditions, usual_conditions(conditions, run.evaluated)
    )
    stem = run.context.gather(stem)[0]
    radius = length_text(threat.eps, threat.norm)
    run.logger.info(f"eps {radius}, from {radius_source(run.config)}")
    if not again and run.context.gather(conditions_at(stem) == conditions)[0]:
        run.logger.info(f"{stem}.json holds this evaluation already")
        return stem, clean
    unreachable = check_reach(specs, threat)
    for warning in unreachable:
        run.logger.warning(warning)
    evaluation = make_evaluation(run, threat, stem, conditions, clean)
    rows = evaluation.run(specs)
    warnings = check_network(run.evaluated.model, run.data) + check_attacks(rows, specs)
    warnings += check_selection(Path(run.evaluated.identity["path"]).name, run.evaluated.trained)
    warnings += sorted(set().union(*run.context.gather(evaluation.warnings)))
    result = summarise(
        rows, specs, conditions, run.evaluated.model.scale, provenance_of(run, threat), warnings
    )
    if run.context.is_main:
        kept = replace(result, warnings=(*unreachable, *warnings))
        write_files(stem, kept, run.data.tree, rows, specs, run.evaluated.settings.classes)
        remove_journals(stem)
        tell(result, stem, run.logger)
        if count := run.config.OPTIONS.save_images:
            save_attack_images(evaluation, rows, specs, count, stem, run.evaluated.settings)
    return stem, rows[CLEAN]


def make_evaluation(
    run: AttackRun, threat: ThreatModel, stem: Path, conditions: Conditions, clean: Rows | None
) -> AttackEvaluation:
    """What runs the attacks of one ball."""
    attacked = (run.surrogate or run.evaluated).model
    return AttackEvaluation(
        run.evaluated.model,
        run.data,
        threat,
        run.logger,
        stem,
        conditions.fingerprint(),
        run.config.EVAL.cascade,
        torch.compile(attacked.outputs) if run.config.EVAL.compile else None,
        None if run.surrogate is None else attacked,
        clean,
    )


def provenance_of(run: AttackRun, threat: ThreatModel) -> dict[str, Any]:
    found = make_provenance(run.config, run.evaluated, run.subset, run.context)
    found |= {"eps": threat.eps, "norm": threat.norm}
    return found | ({} if run.surrogate is None else {"attacked": run.surrogate.identity})


def radius_source(config: Config) -> str:
    """Where the radius comes from, such as `the checkpoint`."""
    key = "EVAL.eps" if config.EVAL.eps else "ADV.clip_eps"
    return config.source(key).value


def tell(result: AttackResult, stem: Path, logger: Logger) -> None:
    """The table, what is to be doubted about it, and where the rest is."""
    logger.info(result_table(result))
    for warning in result.warnings:
        logger.warning(warning)
    logger.info(f"results: {stem}.json, _images.csv, _classes.csv")


def draw_curve(run: AttackRun, stems: Sequence[Path]) -> None:
    """The figure of accuracy against the radius, and signs of a weak attack in it."""
    results = [read_result(stem.with_name(f"{stem.name}.json")) for stem in stems]
    (curve,) = curves_of(result for result in results if isinstance(result, AttackResult))
    for warning in weak_attack_warnings(curve):
        run.logger.warning(warning)
    radii = [length_number(r.conditions.eps, r.conditions.norm) for r in curve]
    path = curve_path(curve_stem([stems[results.index(result)] for result in curve], radii), radii)
    save_figure(robustness({run.evaluated.settings.describe(): curve}), path)
    run.logger.info(f"curve: {path}.png, .pdf")


def curve_stem(stems: Sequence[Path], radii: Sequence[str]) -> Path:
    """What the evaluations at several radii have in common; the first one's, if it is not clear.

    A name that holds `_eps4` may owe it to its checkpoint's file.
    """
    common = set()
    for stem, radius in zip(stems, radii, strict=True):
        before, part, after = stem.name.rpartition(f"_eps{radius}")
        common.add(before + after if part and after[:1] in ("", "_") else stem.name)
    return stems[0].with_name(common.pop()) if len(common) == 1 else stems[0]


def curve_path(stem: Path, radii: Sequence[str]) -> Path:
    """The curve's files without extension, `stem` and all its radii; many of them as a digest."""
    path = stem.with_name(f"{stem.name}_curve_eps{'+'.join(radii)}")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        path = stem.with_name(f"{stem.name}_curve_{names_sha256(radii)[:8]}")
    return path
