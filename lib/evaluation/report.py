"""From outcomes image by image to the numbers: JSON, CSV, and the table on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.algorithm.metrics import has_top5
from lib.algorithm.protocols import AttackSpec, PGDSpec
from lib.evaluation.evaluate import CLEAN, Evaluation, worst_case
from utils.logging import Logger
from utils.storage.accuracy import Accuracy
from utils.storage.conditions import PGD_ALONE, length_text, worst_of
from utils.storage.files import write_csv
from utils.storage.journal import remove_journals
from utils.storage.results import (
    AttackAccuracies,
    AttackResult,
    CleanAccuracies,
    Result,
    TopAccuracies,
    write_result,
)
from utils.text import table

CLASS_HEADER = ("class", "n", "clean_correct", "clean_accuracy", "robust", "robust_accuracy")


def report(
    evaluation: Evaluation,
    stem: Path,
    provenance: Mapping[str, Any],
    warnings: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Write `<stem>_images.csv`, `_classes.csv`, then `.json`: if it is there, all is there; print.

    Args:
        warnings: what is to be doubted about the numbers.
        notes: what else is to be known about them.
    """
    logger = evaluation.task.logger
    robust = worst_case(evaluation.rows, evaluation.threat.protocol)
    result = summarise(evaluation, robust, provenance, warnings, notes)
    write_csv(Path(f"{stem}_images.csv"), *image_table(evaluation, robust))
    write_csv(Path(f"{stem}_classes.csv"), CLASS_HEADER, class_table(evaluation, robust))
    write_result(Path(f"{stem}.json"), result)
    remove_journals(stem.parent, evaluation.conditions.digest)
    say(logger, result)
    logger.info(f"results: {stem}.json, _images.csv, _classes.csv")


def say(logger: Logger, result: Result) -> None:
    """Print the table and the warnings of an evaluation."""
    if isinstance(result, AttackResult):
        logger.info(result_table(result))
    for warning in result.warnings:
        logger.warning(warning)


def summarise(
    evaluation: Evaluation,
    robust: Mapping[int, bool],
    provenance: Mapping[str, Any],
    warnings: Sequence[str],
    notes: Sequence[str],
) -> AttackResult:
    """The counts of an evaluation.

    With a cascade an attack has seen only a part of the images, so only the worst case counts.
    """
    clean, specs = evaluation.rows[CLEAN].values(), evaluation.specs
    n, cascade = len(clean), evaluation.conditions.cascade
    top5 = Accuracy(sum(row.correct5 for row in clean), n)
    attacks = [each for spec in specs for each in attack_accuracies(evaluation, spec)]
    return AttackResult(
        evaluation.conditions,
        provenance,
        tuple(warnings),
        CleanAccuracies(
            Accuracy(sum(row.correct for row in clean), n),
            top5 if has_top5(evaluation.task.evaluated.model.num_classes) else None,
            loss=sum(row.loss for row in clean) / n,
        ),
        () if cascade else tuple(attacks),
        TopAccuracies(Accuracy(sum(robust.values()), n)),
        tuple(spec.name for spec in specs) if cascade else None,
        notes=tuple(notes),
    )


def attack_accuracies(evaluation: Evaluation, spec: AttackSpec) -> list[AttackAccuracies]:
    """An attack's settings and accuracies, after each of its stages.

    Where every iterate counts, an image that is misclassified clean was not attacked and is not
    robust.
    """
    clean, attacked = evaluation.rows[CLEAN], evaluation.rows[spec.name]
    model = evaluation.task.evaluated.model
    scale = model.scale
    settings: dict[str, Any] = {"steps": 0, "step_size": 0.0, "loss": None, "restarts": 1}
    top5 = None  # AutoAttack has none
    if isinstance(spec, PGDSpec):
        settings = {key: getattr(spec, key) for key in settings}
        scale = evaluation.threat.protocol.search_scale(spec, scale)
        robust5 = sum(row.robust5 for row in attacked.values())
        robust5 += sum(row.correct5 for i, row in clean.items() if i not in attacked)
        top5 = Accuracy(robust5, len(clean)) if has_top5(model.num_classes) else None
    accuracies = []
    for number, (name, label) in enumerate(spec.parts, 1):
        robust = sum(row.stages_survived >= number for row in attacked.values())
        top1 = Accuracy(robust, len(clean))
        accuracies.append(
            AttackAccuracies(top1, top5, name=name, label=label, scale=scale, **settings)
        )
    return accuracies


def image_table(
    evaluation: Evaluation, robust: Mapping[int, bool]
) -> tuple[list[str], list[list[Any]]]:
    """Header and lines of the per-image CSV; with a cascade, empty where not attacked."""
    tree, specs = evaluation.data.tree, evaluation.specs
    header = ["image", "label", "clean_prediction", "clean_correct"]
    header += [f"{name}_robust" for spec in specs for name, _ in spec.parts] + ["worst_case_robust"]
    unseen = "" if evaluation.conditions.cascade else 0
    lines = []
    for i, clean in evaluation.rows[CLEAN].items():
        line = [tree.files[i], tree.labels[i], clean.prediction, int(clean.correct)]
        for spec in specs:
            row = evaluation.rows[spec.name].get(i)
            stages = range(1, len(spec.parts) + 1)
            line += [unseen if row is None else int(row.stages_survived >= n) for n in stages]
        lines.append([*line, int(robust[i])])
    return header, lines


def class_table(evaluation: Evaluation, robust: Mapping[int, bool]) -> list[list[Any]]:
    """One row of CLASS_HEADER for each class that has an image, in the order of the outputs."""
    tree, clean = evaluation.data.tree, evaluation.rows[CLEAN]
    members: dict[int, list[int]] = {}
    for i in clean:
        members.setdefault(tree.labels[i], []).append(i)
    lines = []
    for label, images in sorted(members.items()):
        names, n = evaluation.task.evaluated.settings.classes, len(images)
        name = names[label] if names else tree.files[images[0]].partition("/")[0]
        correct, standing = sum(clean[i].correct for i in images), sum(robust[i] for i in images)
        lines.append([name, n, correct, correct / n, standing, standing / n])
    return lines


def result_table(result: AttackResult) -> str:
    """The table on the terminal: top-1 with its 95 % interval, top-5."""
    conditions, provenance = result.conditions, result.provenance
    lines = [["clean", *cells(result.clean)]]
    lines += [[attack.label, *cells(attack)] for attack in result.attacks]
    worst = worst_of(conditions.attacks)
    lines.append([worst, *cells(result.worst_case)])
    eps = length_text(conditions.eps, conditions.norm)
    title = f"protocol {conditions.protocol}, eps {eps}, {provenance['subset']['description']}"
    scales = sorted({a.scale for a in result.attacks if a.loss == "ce" and a.scale is not None})
    if scales and (provenance["checkpoint"]["FN"] or provenance["checkpoint"]["WN"]):
        title += f"; cross-entropy at scale {', '.join(f'{s:g}' for s in scales)}"
    if conditions.surrogate:
        title += f"; images made on {provenance['surrogate']['path']}"
    if conditions.precision != "fp32":
        title += f"; searched in {conditions.precision}, judged in fp32"
    head = ["", "top-1 %", "95 % interval", "top-5 %"]
    notes = [f"{worst}: {PGD_ALONE}"] * (worst == worst_of(["pgd"]))
    return "\n".join([title, table(head, lines), *notes, *result.notes])


def cells(entry: TopAccuracies) -> list[str]:
    """Top-1, its interval, top-5 as text; a dash where there is none."""
    low, high = entry.top1.estimate.whiskers
    top5 = f"{entry.top5.percent:.2f}" if entry.top5 else "-"
    return [f"{entry.top1.percent:.2f}", f"{low:.2f} - {high:.2f}", top5]
