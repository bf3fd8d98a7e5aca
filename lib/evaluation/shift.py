"""Shifted test sets: class folders such as ImageNet-V2, -R, -A, -Sketch or a mapped ObjectNet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lib.algorithm.metrics import correct_in_top
from lib.data.folders import ImageTree, is_image, read_tree, subfolders
from lib.data.subsets import describe_subset
from lib.evaluation.folder_counts import FolderCounts, FolderEvaluation
from lib.evaluation.folder_measure import Measure
from utils.errors import UserError
from utils.figures.comparison import Panel, comparison
from utils.figures.style import save_figure
from utils.storage.accuracy import Accuracy
from utils.storage.files import names_sha256, write_csv
from utils.storage.results import ShiftAccuracies, ShiftResult, write_result
from utils.text import table

PART = 10_000  # images after which an interrupted evaluation resumes
MEASURES = ("top1", "top5", "present_top1", "present_top5")
COLUMNS = ["test_set", "classes", "n"]
COLUMNS += [f"{name}_{what}" for name in MEASURES for what in ("correct", "accuracy")]
COLUMNS += ["top1_low95", "top1_high95", "present_top1_low95", "present_top1_high95"]
Sets = dict[str, ImageTree]


def evaluate_shift(evaluation: FolderEvaluation, root: str) -> ShiftResult:
    """Top-1 and top-5 on each test set: table, JSON, CSV, figure; resumes if interrupted.

    Args:
        evaluation: the network, and how images are read.
        root: one folder of class folders, or a folder of several.

    Raises:
        UserError: a tree that is not in order, or classes that the network does not know.
    """
    whole = evaluation.context.from_main(lambda: read_sets(evaluation, root))
    sets = {name: evaluation.pick(tree) for name, tree in whole.items()}
    n, total = (sum(len(tree.files) for tree in each.values()) for each in (sets, whole))
    names = [f"{name}/{file}" for name, tree in sets.items() for file in tree.files]
    subset = describe_subset(n, total, bool(evaluation.image_ids), names_sha256(names))
    conditions, stem = evaluation.conditions("shift", "standard", subset, "+".join(sets))
    device = evaluation.context.device
    measure = measure_of(whole, evaluation.num_classes, device)
    counts = evaluation.count(parts_of(sets), conditions, stem, "test sets", measure, columns=4)
    accuracies = {name: accuracies_of(counts, name, sets, whole) for name in sets}
    warnings = tuple(note for tree in whole.values() for note in tree.notes)
    provenance = {**evaluation.provenance, "subset": subset}
    result = ShiftResult(conditions, provenance, warnings, accuracies)
    evaluation.finish(stem, lambda: write_files(result, stem), result_text(result, stem))
    return result


def read_sets(evaluation: FolderEvaluation, root: str) -> Sets:
    """All images of each set, with the network's labels; logs what is odd about them.

    Raises:
        UserError: one is not in order, or has classes that the network does not know.
    """
    names, outputs = evaluation.class_names, evaluation.num_classes
    sets = {
        name: read_tree(folder).with_labels_of(names, outputs, evaluation.class_order)
        for name, folder in find_test_sets(root).items()
    }
    for note in (note for tree in sets.values() for note in tree.notes):
        evaluation.logger.warning(note)
    return sets


def find_test_sets(root: str) -> dict[str, str]:
    """Folder of each test set, by name: `root` itself, or the folders in it.

    A set may lie a folder deeper, as archives have it (`imagenet-sketch/sketch/n01440764`).

    Raises:
        UserError: there is none.
    """
    if holds_classes(root):
        return {os.path.basename(os.path.abspath(root)): root}
    sets = {}
    for folder in subfolders(root):
        inner = [folder, *subfolders(folder)]
        place = next((each for each in inner if holds_classes(each)), None)
        if place is not None:
            sets[os.path.basename(folder)] = place
    if not sets:
        raise UserError(
            f"{root} holds no test set: put images into {root}/CLASS/, or several sets into"
            f" {root}/SET/CLASS/"
        )
    return sets


def holds_classes(folder: str) -> bool:
    """Whether a folder in it has images."""
    for inner in subfolders(folder):
        with os.scandir(inner) as entries:
            if any(is_image(entry.name) for entry in entries):
                return True
    return False


def parts_of(sets: Sets) -> Sets:
    """The sets in pieces, `SET/0`, `SET/1`, ..., each of which an interruption leaves done."""
    return {
        f"{name}/{start // PART}": tree.subset(range(start, min(start + PART, len(tree.files))))
        for name, tree in sets.items()
        for start in range(0, len(tree.files), PART)
    }


def measure_of(sets: Sets, num_classes: int, device: torch.device) -> Measure:
    """Top-1 and top-5 over all outputs, then over those of the set's classes alone.

    The latter is the 200-way accuracy that ImageNet-R and -A are published with.
    """
    absent = {}
    for name, tree in sets.items():
        absent[name] = torch.ones(num_classes, dtype=torch.bool)
        absent[name][sorted(set(tree.labels))] = False
        absent[name] = absent[name].to(device)

    def outcomes(logits: torch.Tensor, labels: torch.Tensor, part: str) -> list[torch.Tensor]:
        present = logits.masked_fill(absent[part.rpartition("/")[0]], -torch.inf)
        return [correct_in_top(each, labels, k) for each in (logits, present) for k in (1, 5)]

    return outcomes


def accuracies_of(counts: FolderCounts, name: str, sets: Sets, whole: Sets) -> ShiftAccuracies:
    """A set's accuracies from the counts of its parts."""
    parts: Sequence[Sequence[int]] = [
        part for key, part in counts.items() if key.rpartition("/")[0] == name
    ]
    *correct, n = (sum(column) for column in zip(*parts, strict=True))
    top1, top5, present_top1, present_top5 = (Accuracy(each, n) for each in correct)
    classes = len(set(whole[name].labels))
    images = sets[name].fingerprint
    return ShiftAccuracies(classes, images, top1, top5, present_top1, present_top5)


def result_text(result: ShiftResult, stem: Path) -> str:
    """The table, accuracies in percent."""
    header = ["test set", "images", "classes", "top-1 (%)", "top-5 (%)"]
    header += ["top-1 of its classes", "top-5 of its classes"]
    rows = [
        [name, str(found.top1.n), str(found.classes)]
        + [f"{getattr(found, measure).percent:.2f}" for measure in MEASURES]
        for name, found in result.sets.items()
    ]
    text = "top-1 and top-5 are over all outputs; those of its classes leave the other outputs out"
    return "\n".join([table(header, rows), "", text, f"written: {stem}.json, .csv, .png, .pdf"])


def write_files(result: ShiftResult, stem: Path) -> None:
    """Write `stem.json`, `.csv`, `.png` and `.pdf`."""
    write_result(stem.with_name(f"{stem.name}.json"), result)
    rows: list[list[Any]] = []
    for name, found in result.sets.items():
        each: list[Accuracy] = [getattr(found, measure) for measure in MEASURES]
        counts = [value for a in each for value in (a.correct, a.fraction)]
        intervals = (*found.top1.interval, *found.present_top1.interval)
        rows.append([name, found.classes, found.top1.n, *counts, *intervals])
    write_csv(stem.with_name(f"{stem.name}.csv"), COLUMNS, rows)

    measures = [
        (name, {"all outputs": a.top1.estimate, "classes of the set": a.present_top1.estimate})
        for name, a in result.sets.items()
    ]
    save_figure(comparison([Panel("", "top-1 accuracy (%)", measures)]), stem)
