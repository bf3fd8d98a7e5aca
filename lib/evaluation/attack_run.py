"""`-e`: attacks on a checkpoint, an evaluation for every radius; from settings to files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lib.algorithm.protocols import PROTOCOLS, AttackSpec, AutoAttackSpec, ThreatModel
from lib.data.folders import ImageTree
from lib.data.loader import share_of_workers
from lib.evaluation.attacks import attack_list, for_classes
from lib.evaluation.autoattack import require_package
from lib.evaluation.evaluate import CLEAN, Evaluation, Rows
from lib.evaluation.load_model import (
    EvaluatedModel,
    announce,
    load_images,
    load_surrogate,
    make_provenance,
)
from lib.evaluation.masking import check_attacks, check_network, check_reach, check_selection
from lib.evaluation.report import result_table, summarise, write_files
from lib.evaluation.save_images import save_attack_images
from lib.evaluation.validation import EvaluationData
from utils.config.settings import Config
from utils.config.validators import PgdRow
from utils.distributed.context import DistributedContext
from utils.figures.robustness import curves_of, robustness, weak_attack_warnings
from utils.figures.style import save_figure
from utils.logging import Logger
from utils.storage.conditions import (
    LONGEST_NAME,
    Conditions,
    attack_text,
    length_number,
    length_text,
)
from utils.storage.files import names_sha256
from utils.storage.journal import remove_journals
from utils.storage.results import AttackResult, conditions_at, read_result, result_stem


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
    threats = threat_models(config)

    def prepare() -> tuple[list[list[AttackSpec]], ImageTree, dict[str, Any]]:
        """What may be refused, before anything is measured."""
        lists = [specs_of(config, evaluated, threat) for threat in threats]
        if any(isinstance(spec, AutoAttackSpec) for specs in lists for spec in specs):
            require_package()
        return lists, *load_images(config, data, evaluated)

    lists, tree, subset = context.from_main(prepare)
    surrogate = load_surrogate(config, context, evaluated)
    announce(evaluated, f"attacks on {subset['description']} of {data}/val", logger)
    if surrogate is not None:
        logger.info(f"attacked is {surrogate.identity['path']}: {surrogate.settings.describe()}")
    warn(config, evaluated, tree, logger)
    sizes = config.DATA.img_size, config.DATA.crop_size, config.EVAL.batch_size
    workers = share_of_workers(config.DATA.workers, context)
    images = EvaluationData(tree, *sizes, workers, context)
    radius_source = config.source("EVAL.eps" if config.EVAL.eps else "ADV.clip_eps").value
    clean: dict[str, Rows] = {}  # known from the first radius on
    evaluations: list[Evaluation] = []
    for threat, specs in zip(threats, lists, strict=True):
        conditions = attack_conditions(config, evaluated, surrogate, threat, specs, subset)
        usual = usual_conditions(evaluated, threat)
        stem = context.from_main(partial(result_stem, evaluated.folder, conditions, usual))
        evaluation = Evaluation(
            evaluated, surrogate, images, threat, specs, conditions, stem, logger,
            config.EVAL.compile, dict(clean),
        )  # fmt: skip
        evaluations.append(evaluation)
        logger.info(f"eps {length_text(threat.eps, threat.norm)}, from {radius_source}")
        is_there = context.from_main(partial(conditions_at, stem)) == conditions
        if is_there and (len(threats) > 1 or not again):
            logger.info(f"{stem}.json holds this evaluation already")
            continue
        warnings = run_attacks(evaluation)
        clean = {CLEAN: evaluation.rows[CLEAN]}
        provenance = make_provenance(config, evaluated, subset, context)
        provenance |= {} if surrogate is None else {"surrogate": surrogate.identity}
        if context.is_main:
            # Another evaluation may have taken the name meanwhile.
            evaluation.stem = result_stem(evaluated.folder, conditions, usual)
            report(evaluation, provenance, warnings)
            if config.OPTIONS.save_images:
                save_attack_images(evaluation, config.OPTIONS.save_images)
    if context.is_main and len(threats) > 1:
        draw_curve(evaluations, usual)
    context.barrier()


def threat_models(config: Config) -> list[ThreatModel]:
    """The balls of `--eps`, or the one of ADV.clip_eps; Linf has the unit of max_color_value."""
    evaluation = config.EVAL
    unit = config.DATA.max_color_value if evaluation.norm == "Linf" else 1.0
    protocol = PROTOCOLS[evaluation.protocol]
    return [
        ThreatModel(eps / unit, protocol, config.RUN.seed, evaluation.precision, evaluation.norm)
        for eps in dict.fromkeys(evaluation.eps or (config.ADV.clip_eps,))
    ]


def specs_of(config: Config, evaluated: EvaluatedModel, threat: ThreatModel) -> list[AttackSpec]:
    """The attacks in a ball; EVAL.scales mean something for a hypersphere head alone."""
    scales = config.EVAL.scales if evaluated.settings.hypersphere else ()
    names, rows = config.OPTIONS.attack, config.ADV.pgd_attack
    specs = attack_list(names, rows, threat.protocol, scales, threat.norm, threat.eps)
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


def attack_conditions(
    config: Config,
    evaluated: EvaluatedModel,
    surrogate: EvaluatedModel | None,
    threat: ThreatModel,
    specs: Sequence[AttackSpec],
    subset: Mapping[str, Any],
) -> Conditions:
    """Everything that can change the numbers of attacks."""
    return Conditions(
        kind="attack",
        protocol=threat.protocol.name,
        checkpoint=evaluated.identity["sha256"],
        images=subset["sha256"],
        resize=config.DATA.img_size,
        crop=config.DATA.crop_size,
        network=network_text(config, evaluated),
        checkpoint_file=evaluated.file_name,
        attacks=attack_texts(specs, threat.norm),
        subset=subset["label"],
        eps=threat.eps,
        norm=threat.norm,
        precision=threat.precision,
        seed=threat.seed,
        surrogate="" if surrogate is None else surrogate.identity["sha256"],
        cascade=config.EVAL.cascade,
    )


def usual_conditions(evaluated: EvaluatedModel, threat: ThreatModel) -> dict[str, Any]:
    """Settings of the network's training, or the built-in ones, that files are not named by."""
    trained = evaluated.trained or Config().as_dict()
    rows = [PgdRow(*row) for row in trained["ADV"]["pgd_attack"]]
    specs = attack_list((), rows, threat.protocol, (), threat.norm, threat.eps)
    return {
        "resize": trained["DATA"]["img_size"],
        "crop": trained["DATA"]["crop_size"],
        "eps": trained["ADV"]["clip_eps"] / trained["DATA"].get("max_color_value", 255),
        "attacks": attack_texts(specs, threat.norm),
    }


def network_text(config: Config, evaluated: EvaluatedModel) -> str:
    """What flags say of a network whose file does not; empty where it carries its settings."""
    settings = evaluated.settings
    if settings.classes:
        return ""
    colours = f"mean {settings.mean}, std {settings.std}"
    return f"{settings.describe()}, {colours}, class order {config.DATA.class_order}"


def attack_texts(specs: Sequence[AttackSpec], norm: str) -> tuple[str, ...]:
    """The attacks with their steps."""
    return tuple(attack_text(s.name, getattr(s, "step_size", 0.0), norm) for s in specs)


def run_attacks(evaluation: Evaluation) -> list[str]:
    """Run them; what casts doubt on the numbers."""
    evaluated = evaluation.evaluated
    unreachable = check_reach(evaluation.specs, evaluation.threat)
    for warning in unreachable:  # before hours of work, perhaps
        evaluation.logger.warning(warning)
    evaluation.run()
    own = evaluation.data.context.gather(evaluation.warnings)
    return [
        *unreachable,
        *check_network(evaluated.model, evaluation.data),
        *check_attacks(evaluation.rows, evaluation.specs),
        *check_selection(Path(evaluated.identity["path"]).name, evaluated.trained),
        *sorted(set().union(*own)),
    ]


def report(evaluation: Evaluation, provenance: Mapping[str, Any], warnings: Sequence[str]) -> None:
    """Write the files, print the table, what is to be doubted about it, and where the rest is."""
    logger, stem = evaluation.logger, evaluation.stem
    result = summarise(evaluation, provenance, warnings)
    write_files(evaluation, result)
    remove_journals(stem.parent, evaluation.conditions.digest)
    logger.info(result_table(result))
    for warning in warnings:
        logger.warning(warning)
    logger.info(f"results: {stem}.json, _images.csv, _classes.csv")


def draw_curve(evaluations: Sequence[Evaluation], usual: Mapping[str, Any]) -> None:
    """The figure of accuracy against the radius, and signs of a weak attack in it."""
    results = [read_result(Path(f"{evaluation.stem}.json")) for evaluation in evaluations]
    (curve,) = curves_of(result for result in results if isinstance(result, AttackResult))
    last = evaluations[-1]
    for warning in weak_attack_warnings(curve):
        last.logger.warning(warning)
    radii = [length_number(r.conditions.eps, r.conditions.norm) for r in curve]
    path = curve_path(last.stem, last.conditions, usual, radii)
    save_figure(robustness({last.evaluated.settings.describe(): curve}), path)
    last.logger.info(f"curve: {path}.png, .pdf")


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
