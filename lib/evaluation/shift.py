"""Right answers on several folders of images: of ImageNet-C, and shifted test sets.

Test sets are class folders such as ImageNet-V2, -R, -A, -Sketch or a mapped ObjectNet.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from lib.algorithm.metrics import correct_in_top, full_precision, has_top5
from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pgd_attack import DeviceBatch
from lib.data.datasets import ImageBatches, eval_transform, share_in_batches
from lib.data.folders import ImageTree, is_image, read_tree, subfolders
from lib.data.loader import share_of_workers
from lib.evaluation.task import Task, read_batches
from utils.errors import UserError
from utils.figures.comparison import Panel, comparison
from utils.figures.style import save_figure
from utils.logging import ProgressBar
from utils.storage.conditions import Conditions
from utils.storage.files import names_sha256, write_lines
from utils.storage.journal import ResumableRows, remove_journals
from utils.storage.results import (
    Accuracy,
    Estimate,
    ImageNetCResult,
    ShiftAccuracies,
    ShiftResult,
    result_stem,
    write_result,
)
from utils.text import table

MEASURES = ("top1", "top5", "present_top1", "present_top5")
CHUNK = 512  # images of a folder that one process counts and the journal keeps as one row
PROGRESS_LINES = 20  # over the whole evaluation, where stdout is no terminal
# By folder: right in top-1 and top-5, the same among its own classes if asked for, images.
FolderCounts = dict[str, list[int]]


def count_folders(
    task: Task,
    folders: Mapping[str, ImageTree],
    conditions: Conditions,
    title: str,
    absent: Mapping[str, torch.Tensor] = {},
) -> FolderCounts:
    """Every folder's counts over all processes; what journals hold is not evaluated again.

    Folders are cut into chunks and these into batches, the same for any number of processes and
    after any interruption: so each image keeps its neighbours, and the sums their rounding.

    Args:
        folders: images by name, with the network's labels.
        absent: by folder, (classes,) bool: outputs that a second pair of counts leaves out.
    """
    context, model, names = task.context, task.evaluated.model, list(folders)
    chunks = {
        f"{name}[{images[0]}:{images[-1] + 1}]": (name, images)
        for name, tree in folders.items()
        for images in share_in_batches(range(len(tree.files)), CHUNK)
    }
    journal = ResumableRows(task.evaluated.folder, conditions.digest, context, read_counts)
    with journal, frozen_eval(model):
        left = [key for key in chunks if key not in journal.found.get("counts", {})]
        left.sort(key=lambda key: -len(chunks[key][1]))  # so that the shares are even
        if len(left) < len(chunks):
            done = f"{len(chunks) - len(left)} of {len(chunks)}"
            task.logger.info(f"resuming: {done} chunks of images were evaluated before")
        share = {
            key: (name, share_in_batches(images, task.config.EVAL.batch_size))
            for key in left[context.rank :: context.world_size]
            for name, images in [chunks[key]]
        }
        keys = [(names.index(name), part) for name, parts in share.values() for part in parts]
        transform = eval_transform(conditions.resize, conditions.crop, conditions.interpolation)
        dataset = ImageBatches(list(folders.values()), transform, conditions.crop)
        workers = share_of_workers(task.config.DATA.workers, context)
        bar = ProgressBar(task.logger, len(keys), title, max(1, len(keys) // PROGRESS_LINES))
        batches = bar.over(read_batches(dataset, keys, workers, context))
        counted = FolderCounts()
        for key, (name, parts) in share.items():
            counted[key] = count_images(model, islice(batches, len(parts)), name, absent.get(name))
            journal.add("counts", {key: counted[key]})
        counts = journal.share("counts", counted)
    rows = defaultdict(list)
    for key, (name, _) in chunks.items():
        rows[name].append(counts[key])
    return {name: [sum(column) for column in zip(*rows[name], strict=True)] for name in names}


def accuracy_cells(
    accuracies: Mapping[str, Accuracy], with_interval: Sequence[str]
) -> dict[str, float]:
    """Columns of a CSV: counts and accuracies, and behind them the 95 % intervals of some."""
    cells: dict[str, float] = {}
    for name, accuracy in accuracies.items():
        cells[f"{name}_correct"], cells[f"{name}_accuracy"] = accuracy.correct, accuracy.fraction
    for name in with_interval:
        cells[f"{name}_low95"], cells[f"{name}_high95"] = accuracies[name].interval
    return cells


def finish(
    task: Task,
    result: ImageNetCResult | ShiftResult,
    rows: Sequence[Mapping[str, Any]],
    draw: Callable[[], Figure],
    text: str,
) -> None:
    """Write JSON, CSV and figure, and print; from then on nothing is left to resume."""
    folder, conditions = task.evaluated.folder, result.conditions
    if task.context.is_main:
        stem = result_stem(folder, conditions, task.usual(conditions))
        write_result(Path(f"{stem}.json"), result)
        write_lines(Path(f"{stem}.csv"), rows)
        save_figure(draw(), stem)
        remove_journals(folder, conditions.digest)
        task.logger.info(f"{text}\nwritten: {stem}.json, .csv, .png, .pdf")
    task.context.barrier()


@torch.no_grad()
def count_images(
    model: nn.Module, batches: Iterable[DeviceBatch], name: str, absent: torch.Tensor | None
) -> list[int]:
    """Columns of a folder's images, summed on the device: reading them is the only wait.

    Outputs that are not finite are refused, for any class could be called the largest there.
    """
    sums = []
    for images, labels, _ in batches:
        with full_precision():
            logits = model(images)
        broken = ~logits.isfinite().all(dim=1)
        choices = [logits] if absent is None else [logits, logits.masked_fill(absent, -torch.inf)]
        right = [correct_in_top(each, labels, k) for each in choices for k in (1, 5)]
        sums.append(torch.stack([*right, torch.ones_like(broken), broken]).sum(dim=1))
    *counts, not_finite = torch.stack(sums).sum(dim=0).tolist()
    if not_finite:
        raise UserError(
            f"the network's outputs are not finite on {not_finite} of {counts[-1]} images of"
            f" {name}; the checkpoint is of a training that diverged, or damaged"
        )
    return counts


def read_counts(_: str, chunk: str, values: list[int]) -> tuple[str, list[int]]:
    """A row of the journal; TypeError where it is damaged."""
    return chunk, [int(value) for value in values]


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
    absent = absent_outputs(whole, task.evaluated.model.num_classes, task.context.device)
    accuracies = {}
    for name, counts in count_folders(task, sets, conditions, "test sets", absent).items():
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


def absent_outputs(
    sets: Mapping[str, ImageTree], num_classes: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """For each test set, which outputs it has no images of, (classes,) bool.

    Without them top-1 is the 200-way accuracy that ImageNet-R and -A are published with.
    """
    absent = {}
    for name, tree in sets.items():
        mask = torch.ones(num_classes, dtype=torch.bool)
        mask[sorted(set(tree.labels))] = False
        absent[name] = mask.to(device)
    return absent


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
