"""Robustness class by class: how many images hold, and what the others are taken for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lib.algorithm.protocols import AttackSpec
from lib.data.folders import ImageTree
from lib.evaluation.runner import CLEAN

HEADER = (
    "class", "n", "clean_correct", "clean_accuracy", "robust", "robust_accuracy",
    "most_frequent_wrong_answer", "times",
)  # fmt: skip
Rows = Mapping[int, Any]


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
