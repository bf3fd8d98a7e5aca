"""From outcomes image by image to JSON, CSV, the table on the terminal, and `--save_images N`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchvision.utils import save_image

from lib.algorithm.metrics import has_top5
from lib.algorithm.pgd import frozen_eval
from lib.algorithm.protocols import AttackSpec, PGDSpec
from lib.data.folders import evenly_spread
from lib.evaluation.evaluate import CLEAN, Evaluation, worst_case
from utils.distributed.context import DistributedContext
from utils.figures.evaluation import AttackedImage, attack_images
from utils.figures.style import save_figure
from utils.logging import Logger
from utils.storage.conditions import PGD_ALONE, length_text, worst_of
from utils.storage.files import make_folder, replacing, write_lines
from utils.storage.journal import remove_journals
from utils.storage.results import (
    Accuracy,
    AttackAccuracies,
    AttackResult,
    CleanAccuracies,
    Result,
    TopAccuracies,
    write_result,
)
from utils.text import table

MOST_IN_FIGURE = 12
Images = Sequence[Mapping[str, Any]]  # the lines of `_images.csv`, by column


def report(
    evaluation: Evaluation,
    stem: Path,
    provenance: Mapping[str, Any],
    warnings: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Write `<stem>_images.csv`, `_classes.csv`, then `.json`: if it is there, all is there; print.

    With a cascade an attack has seen only a part of the images, so only the worst case counts.
    """
    logger, images = evaluation.task.logger, image_lines(evaluation)
    clean, specs = evaluation.rows[CLEAN].values(), evaluation.specs
    cascade, n = evaluation.conditions.cascade, len(clean)
    top5 = Accuracy(sum(row.correct5 for row in clean), n)
    attacks = () if cascade else (attack_accuracies(evaluation, images, spec) for spec in specs)
    result = AttackResult(
        evaluation.conditions,
        provenance,
        tuple(warnings),
        CleanAccuracies(
            count(images, "clean_correct"),
            top5 if has_top5(evaluation.task.evaluated.model.num_classes) else None,
            loss=sum(row.loss for row in clean) / n,
        ),
        tuple(part for parts in attacks for part in parts),
        TopAccuracies(count(images, "worst_case_robust")),
        tuple(spec.name for spec in specs) if cascade else None,
        notes=tuple(notes),
    )
    write_lines(Path(f"{stem}_images.csv"), images)
    write_lines(Path(f"{stem}_classes.csv"), class_lines(evaluation, images))
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


def count(images: Images, column: str) -> Accuracy:
    """How many images have a 1 there."""
    return Accuracy(sum(line[column] for line in images), len(images))


def attack_accuracies(
    evaluation: Evaluation, images: Images, spec: AttackSpec
) -> list[AttackAccuracies]:
    """An attack's settings and accuracies, after each of its stages."""
    clean, attacked = evaluation.rows[CLEAN], evaluation.rows[spec.name]
    model, scale = evaluation.task.evaluated.model, evaluation.attacked.scale
    settings: dict[str, Any] = {"steps": 0, "step_size": 0.0, "loss": None, "restarts": 1}
    top5 = None  # AutoAttack has none
    if isinstance(spec, PGDSpec):
        settings = {key: getattr(spec, key) for key in settings}
        scale = evaluation.threat.protocol.search_scale(spec, scale)
        robust5 = sum(row.robust5 for row in attacked.values())
        robust5 += sum(row.correct5 for i, row in clean.items() if i not in attacked)
        top5 = Accuracy(robust5, len(clean)) if has_top5(model.num_classes) else None
    settings |= {"scale": scale}
    return [
        AttackAccuracies(count(images, f"{name}_robust"), top5, name=name, label=label, **settings)
        for name, label in spec.parts
    ]


def image_lines(evaluation: Evaluation) -> Images:
    """The CSV of images. Where every iterate counts, one misclassified clean is not robust.

    With a cascade, cells are empty where an image was not attacked.
    """
    tree, rows = evaluation.data.tree, evaluation.rows
    robust = worst_case(rows, evaluation.threat.protocol)
    unseen = "" if evaluation.conditions.cascade else 0
    lines = []
    for i, clean in rows[CLEAN].items():
        line = {"image": tree.files[i], "label": tree.labels[i]}
        line |= {"clean_prediction": clean.prediction, "clean_correct": int(clean.correct)}
        for spec in evaluation.specs:
            row = rows[spec.name].get(i)
            for stage, (name, _) in enumerate(spec.parts, 1):
                survived = unseen if row is None else int(row.stages_survived >= stage)
                line[f"{name}_robust"] = survived
        lines.append(line | {"worst_case_robust": int(robust[i])})
    return lines


def class_lines(evaluation: Evaluation, images: Images) -> Images:
    """The CSV of classes that have an image, in the order of the outputs."""
    names = evaluation.task.evaluated.settings.classes
    members: dict[int, list[Mapping[str, Any]]] = {}
    for line in images:
        members.setdefault(line["label"], []).append(line)
    lines = []
    for label, its_images in sorted(members.items()):
        clean, worst = (count(its_images, c) for c in ("clean_correct", "worst_case_robust"))
        name = names[label] if names else its_images[0]["image"].partition("/")[0]
        line = {"class": name, "n": clean.n}
        line |= {"clean_correct": clean.correct, "clean_accuracy": clean.fraction}
        lines.append(line | {"robust": worst.correct, "robust_accuracy": worst.fraction})
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
    attacked = provenance.get("surrogate", provenance["checkpoint"])
    if scales and (attacked["FN"] or attacked["WN"]):
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


def save_attack_images(evaluation: Evaluation, stem: Path, count: int) -> None:
    """Keep `count` evenly spread images, each under the first attack that breaks it, or the last.

    Writes `<stem>_images/<number>_{original,adversarial,perturbation}.png`, 8 bits a colour,
    with the perturbation scaled so that grey is none and black and white are -eps and eps (the
    largest change under other norms than Linf); and the figure `<stem>_images.png` and `.pdf`.
    """
    clean, threat = evaluation.rows[CLEAN], evaluation.threat
    right = [i for i, row in clean.items() if row.correct] or list(clean)
    chosen = [right[k] for k in evenly_spread(len(right), count)]
    images = attacked_images(evaluation, chosen)
    largest = max(float((each.adversarial - each.clean).abs().max()) for each in images)
    reach = max(threat.eps if threat.norm == "Linf" else largest, 1e-12)
    path = Path(f"{stem}_images")
    write_images(images, reach, make_folder(path))
    eps = length_text(threat.eps, threat.norm)
    title = f"{evaluation.task.evaluated.settings.describe()}; protocol {threat.protocol.name}"
    title += f", eps {eps}" + ", images made on another network" * bool(evaluation.surrogate)
    save_figure(attack_images(images[:MOST_IN_FIGURE], reach, title), path)
    shown = min(len(images), MOST_IN_FIGURE)
    evaluation.task.logger.info(f"{len(images)} images: {path}, {shown} of them: {path}.png, .pdf")


def attacked_images(evaluation: Evaluation, chosen: Sequence[int]) -> list[AttackedImage]:
    """The images at some positions, attacked once more by this process alone."""
    data, model = evaluation.data, evaluation.task.evaluated.model
    alone = replace(data, workers=0, context=DistributedContext(0, 1, data.context.device))
    images: dict[int, AttackedImage] = {}
    classes = evaluation.task.evaluated.settings.classes

    def name_of(output: int) -> str:
        return classes[output] if classes else f"output {output}"

    with frozen_eval(model), frozen_eval(evaluation.attacked):
        originals = {
            i: image
            for batch in alone.batches(chosen)
            for i, image in zip(batch.indices.tolist(), batch.images.cpu(), strict=True)
        }
        for spec in evaluation.specs:
            positions = [i for i in chosen if breaking(evaluation, i) is spec]
            if not positions:
                continue
            for outcome in evaluation.attack_of(spec).run(alone.batches(positions)):
                columns = outcome.indices.tolist(), outcome.predictions.tolist()
                for i, after, image in zip(*columns, outcome.adversarial.cpu(), strict=True):
                    outputs = data.tree.labels[i], evaluation.rows[CLEAN][i].prediction, after
                    texts = *map(name_of, outputs), spec.label
                    images[i] = AttackedImage(originals[i], image, *texts)
    return [images[i] for i in chosen]


def breaking(evaluation: Evaluation, index: int) -> AttackSpec:
    """The first attack that breaks an image, or the last one."""
    for spec in evaluation.specs:
        row = evaluation.rows[spec.name].get(index)
        if row is not None and not row.robust:
            return spec
    return evaluation.specs[-1]


def write_images(images: Sequence[AttackedImage], reach: float, folder: Path) -> None:
    """The three files of each image; `reach` is the change that is drawn white."""
    for number, image in enumerate(images):
        change = ((image.adversarial - image.clean) / (2 * reach) + 0.5).clamp(0, 1)
        files = {"original": image.clean, "adversarial": image.adversarial, "perturbation": change}
        for name, pixels in files.items():
            with replacing(folder / f"{number:03d}_{name}.png") as file:
                save_image(pixels, file, format="png")
