"""Shifted test sets: class folders such as ImageNet-V2, -R, -A, -Sketch or a mapped ObjectNet."""

import os
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure

from lib.algorithm.metrics import correct_in_top, has_top5
from lib.data.folders import ImageTree, is_image, read_tree, subfolders
from lib.evaluation.folder_counts import Measure, accuracy_cells, count_folders, finish
from lib.evaluation.task import Task
from utils.errors import UserError
from utils.figures.comparison import Panel, comparison
from utils.storage.accuracy import Accuracy, Estimate
from utils.storage.files import names_sha256
from utils.storage.results import ShiftAccuracies, ShiftResult
from utils.text import table

MEASURES = ("top1", "top5", "present_top1", "present_top5")


def evaluate_shift(task: Task, root: str) -> ShiftResult:
    """Top-1 and top-5 on each test set: table, JSON, CSV, figure; resumes if interrupted.

    Args:
        root: one folder of class folders, or a folder of several.
    """
    task.announce(f"shifted test sets at {root}")

    def read() -> dict[str, ImageTree]:
        sets = find_test_sets(root).items()
        return task.with_notes(root, {n: task.with_labels(read_tree(path)) for n, path in sets})

    whole = task.context.from_main(read)
    sets = {name: task.pick(tree) for name, tree in whole.items()}
    n, total = (sum(len(tree.files) for tree in each.values()) for each in (sets, whole))
    names = [f"{name}/{file}" for name, tree in sets.items() for file in tree.files]
    subset, resize = task.subset(n, total, names_sha256(names)), task.config.DATA.img_size
    conditions = task.conditions("shift", "standard", resize, subset, folders="+".join(sets))
    measure = measure_of(whole, task.evaluated.model.num_classes, task.context.device)
    accuracies = {}
    for name, counts in count_folders(task, sets, conditions, "test sets", measure).items():
        *correct, images = counts
        tops = dict(zip(MEASURES, (Accuracy(right, images) for right in correct), strict=True))
        classes = len(set(whole[name].labels))
        accuracies[name] = ShiftAccuracies(classes, sets[name].fingerprint, **tops)
    warnings = tuple(dict.fromkeys(note for tree in whole.values() for note in tree.notes))
    result = ShiftResult(conditions, task.provenance(subset), warnings, accuracies)
    text = table_of(result, task.evaluated.model.num_classes)
    finish(task, result, csv_rows(result), lambda: figure(result), text)
    return result


def find_test_sets(root: str) -> dict[str, str]:
    """Folder of each test set, by name: `root` itself, or the folders in it.

    A set may lie a folder deeper, as archives have it (`imagenet-sketch/sketch/n01440764`).
    """
    if holds_classes(root):
        return {os.path.basename(os.path.abspath(root)): root}
    sets = {}
    for folder in subfolders(root):
        candidates = [folder, *subfolders(folder)]
        holder = next((path for path in candidates if holds_classes(path)), None)
        if holder is not None:
            sets[os.path.basename(folder)] = holder
    if not sets:
        raise UserError(
            f"{root} holds no test set: put images into {root}/CLASS/, or several sets into"
            f" {root}/SET/CLASS/"
        )
    return sets


def holds_classes(folder: str) -> bool:
    """Whether a folder in it has images."""
    return any(any(map(is_image, os.listdir(inner))) for inner in subfolders(folder))


def measure_of(sets: dict[str, ImageTree], num_classes: int, device: torch.device) -> Measure:
    """Top-1 and top-5 over all outputs, then over those of the set's classes alone.

    The latter is the 200-way accuracy that ImageNet-R and -A are published with.
    """
    absent = {}
    for name, tree in sets.items():
        mask = torch.ones(num_classes, dtype=torch.bool)
        mask[sorted(set(tree.labels))] = False
        absent[name] = mask.to(device)

    def outcomes(logits: torch.Tensor, labels: torch.Tensor, name: str) -> list[torch.Tensor]:
        present = logits.masked_fill(absent[name], -torch.inf)
        return [correct_in_top(each, labels, k) for each in (logits, present) for k in (1, 5)]

    return outcomes


def table_of(result: ShiftResult, outputs: int) -> str:
    """Accuracies in percent; without top-5 of five outputs or fewer, where it is always 100."""

    def cell(entry: ShiftAccuracies, measure: str) -> str:
        choices = entry.classes if "present" in measure else outputs
        few = "top5" in measure and not has_top5(choices)
        return "-" if few else f"{getattr(entry, measure).percent:.2f}"

    header = ["test set", "images", "classes", "top-1 (%)", "top-5 (%)"]
    header += ["top-1 of its classes", "top-5 of its classes"]
    rows = [
        [name, str(entry.top1.n), str(entry.classes)]
        + [cell(entry, measure) for measure in MEASURES]
        for name, entry in result.sets.items()
    ]
    text = "top-1 and top-5 are over all outputs; those of its classes leave the other outputs out"
    return f"{table(header, rows)}\n\n{text}"


def csv_rows(result: ShiftResult) -> list[dict[str, Any]]:
    """One row per test set."""
    rows = []
    for name, entry in result.sets.items():
        accuracies = {measure: getattr(entry, measure) for measure in MEASURES}
        cells = accuracy_cells(accuracies, with_interval=["top1", "present_top1"])
        rows.append({"test_set": name, "classes": entry.classes, "n": entry.top1.n} | cells)
    return rows


def figure(result: ShiftResult) -> Figure:
    def point(accuracy: Accuracy) -> Estimate:
        return replace(accuracy.estimate, warned=bool(result.warnings))

    bars = [
        (name, {"all outputs": point(a.top1), "classes of the set": point(a.present_top1)})
        for name, a in result.sets.items()
    ]
    return comparison([Panel("", "top-1 accuracy (%)", bars)])
