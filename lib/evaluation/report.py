"""From outcomes image by image to the numbers: JSON, CSV, and the table on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.algorithm.protocols import PROTOCOLS, AttackSpec, PGDSpec, Protocol
from lib.data.folders import ImageTree
from lib.evaluation.runner import CLEAN
from utils.logging import table
from utils.storage.accuracy import Accuracy
from utils.storage.conditions import Conditions, length_text
from utils.storage.files import write_csv
from utils.storage.results import (
    AttackAccuracies,
    AttackResult,
    CleanAccuracies,
    TopAccuracies,
    write_result,
)

HEADER = (
    "class", "n", "clean_correct", "clean_accuracy", "robust", "robust_accuracy",
    "most_frequent_wrong_answer", "times",
)  # fmt: skip
Rows = Mapping[int, Any]


def summarise(
    rows: Mapping[str, Rows],
    specs: Sequence[AttackSpec],
    conditions: Conditions,
    scale: float,
    provenance: Mapping[str, Any],
    warnings: Iterable[str],
) -> AttackResult:
    """The counts of an evaluation; `scale` is the network's own.

    Where every iterate counts, an image that is misclassified clean was not attacked and is not
    robust.
    With a cascade an attack has seen only a part of the images, so only the worst case counts.
    """
    clean, protocol = rows[CLEAN], PROTOCOLS[conditions.protocol]
    n, cascade = len(clean), conditions.cascade
    attacks = [
        attack
        for spec in (() if cascade else specs)
        for attack in attack_accuracies(spec, rows, protocol, scale)
    ]
    return AttackResult(
        conditions,
        provenance,
        tuple(warnings),
        CleanAccuracies(
            Accuracy(sum(row.right for row in clean.values()), n),
            Accuracy(sum(row.right5 for row in clean.values()), n),
            loss=sum(row.loss for row in clean.values()) / n,
        ),
        tuple(attacks),
        TopAccuracies(Accuracy(sum(worst_case(rows, protocol).values()), n)),
        tuple(spec.name for spec in specs) if cascade else None,
    )


def attack_accuracies(
    spec: AttackSpec, rows: Mapping[str, Rows], protocol: Protocol, own_scale: float
) -> list[AttackAccuracies]:
    """An attack's settings and accuracies, after each of its stages."""
    clean, attacked = rows[CLEAN], rows[spec.name]
    settings: dict[str, Any] = {"steps": 0, "step_size": 0.0, "loss": None, "restarts": 1}
    settings["scale"], top5 = own_scale, None
    if isinstance(spec, PGDSpec):  # AutoAttack has no top-5
        settings |= {key: getattr(spec, key) for key in ("steps", "step_size", "loss", "restarts")}
        settings["scale"] = protocol.search_scale(spec, own_scale)
        robust5 = sum(row.right5 for row in attacked.values())
        robust5 += sum(row.right5 for i, row in clean.items() if i not in attacked)
        top5 = Accuracy(robust5, len(clean))
    found = []
    for number, (name, label) in enumerate(spec.parts, 1):
        robust = sum(row.stages_survived >= number for row in attacked.values())
        top1 = Accuracy(robust, len(clean))
        found.append(AttackAccuracies(top1, top5, name=name, label=label, **settings))
    return found


def worst_case(rows: Mapping[str, Rows], protocol: Protocol) -> dict[int, bool]:
    """For each image, whether it is robust against every attack of the list."""
    attacks = [attacked for name, attacked in rows.items() if name != CLEAN]
    return {
        i: (clean.right or not protocol.every_iterate)
        and all(i not in a or a[i].right for a in attacks)
        for i, clean in rows[CLEAN].items()
    }


def image_table(
    tree: ImageTree,
    rows: Mapping[str, Rows],
    specs: Sequence[AttackSpec],
    robust: Mapping[int, bool],
    cascade: bool,
) -> tuple[list[str], list[list[Any]]]:
    """Header and lines of the per-image CSV; with a cascade, empty where not attacked."""
    header = ["image", "label", "clean_prediction", "clean_correct"]
    header += [f"{name}_robust" for spec in specs for name, _ in spec.parts] + ["worst_case_robust"]
    lines = []
    for i, clean in rows[CLEAN].items():
        line = [tree.files[i], tree.labels[i], clean.prediction, int(clean.right)]
        for spec in specs:
            row, unseen = rows[spec.name].get(i), "" if cascade else 0
            stages = range(1, len(spec.parts) + 1)
            line += [unseen if row is None else int(row.stages_survived >= n) for n in stages]
        lines.append([*line, int(robust[i])])
    return header, lines


def class_table(
    tree: ImageTree,
    rows: Mapping[str, Rows],
    specs: Sequence[AttackSpec],
    robust: Mapping[int, bool],
    names: Sequence[str] | None,
) -> list[list[Any]]:
    """One row of HEADER for each class that has an image, in the order of the outputs.

    Args:
        robust: by position, whether the image is robust in the worst case.
        names: class of each output, where the checkpoint says it; else the folders' names.
    """
    members: dict[int, list[int]] = {}
    for position in rows[CLEAN]:
        members.setdefault(tree.labels[position], []).append(position)
    folders = {label: tree.files[p[0]].partition("/")[0] for label, p in members.items()}

    def name_of(output: int) -> str:
        return names[output] if names else folders.get(output, f"output {output}")

    table = []
    for label in sorted(members):
        positions = members[label]
        answers = Counter(wrong_answer(rows, specs, p, label) for p in positions if not robust[p])
        (answer, times), *_ = [*answers.most_common(1), (None, 0)]
        n, clean = len(positions), sum(rows[CLEAN][p].right for p in positions)
        held = sum(robust[p] for p in positions)
        accuracies = [clean, clean / n, held, held / n]
        wrong = "" if answer is None else name_of(answer)
        table.append([name_of(label), n, *accuracies, wrong, times])
    return table


def wrong_answer(
    rows: Mapping[str, Rows], specs: Sequence[AttackSpec], position: int, label: int
) -> int | None:
    """What an image is taken for, clean or by the first attack that breaks it."""
    phases = [CLEAN, *(spec.name for spec in specs)]
    found = (rows[name][position].prediction for name in phases if position in rows[name])
    return next((prediction for prediction in found if prediction != label), None)


def write_files(
    stem: Path,
    result: AttackResult,
    tree: ImageTree,
    rows: Mapping[str, Rows],
    specs: Sequence[AttackSpec],
    class_names: Sequence[str] | None,
) -> None:
    """`<stem>_images.csv`, `_classes.csv`, then `.json`: if it is there, all is there."""
    robust = worst_case(rows, PROTOCOLS[result.conditions.protocol])
    by_image = image_table(tree, rows, specs, robust, result.conditions.cascade)
    write_csv(stem.with_name(f"{stem.name}_images.csv"), *by_image)
    by_class = class_table(tree, rows, specs, robust, class_names)
    write_csv(stem.with_name(f"{stem.name}_classes.csv"), HEADER, by_class)
    write_result(stem.with_name(f"{stem.name}.json"), result)


def result_table(result: AttackResult) -> str:
    """The table on the terminal: top-1 with its 95 % interval, top-5."""
    measured, provenance = result.conditions, result.provenance
    lines = [["clean", *cells(result.clean)]]
    lines += [[attack.label, *cells(attack)] for attack in result.attacks]
    lines.append(["worst case", *cells(result.worst_case)])
    eps = length_text(measured.eps, measured.norm)
    title = f"protocol {measured.protocol}, eps {eps}, {provenance['subset']['description']}"
    scales = sorted({a.scale for a in result.attacks if a.loss == "ce" and a.scale is not None})
    if scales and (provenance["checkpoint"]["FN"] or provenance["checkpoint"]["WN"]):
        title += f"; cross-entropy at scale {', '.join(f'{s:g}' for s in scales)}"
    if measured.surrogate:
        title += f"; images made on {provenance['attacked']['path']}"
    if measured.precision != "fp32":
        title += f"; searched in {measured.precision}, judged in fp32"
    head = ["", "top-1 %", "95 % interval", "top-5 %"]
    return f"{title}\n{table(head, lines)}"


def cells(entry: TopAccuracies) -> list[str]:
    """Top-1, its interval, top-5 as text; a dash where there is none."""
    low, high = entry.top1.estimate.whiskers
    top5 = f"{entry.top5.percent:.2f}" if entry.top5 else "-"
    return [f"{entry.top1.percent:.2f}", f"{low:.2f} - {high:.2f}", top5]
