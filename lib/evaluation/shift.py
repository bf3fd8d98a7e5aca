"""Shifted test sets: class folders such as ImageNet-V2, -R, -A, -Sketch or a mapped ObjectNet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lib.algorithm.metrics import correct_in_top
from lib.data.folders import ImageTree, read_tree
from lib.data.listing import is_image, subfolders
from lib.data.subsets import choose, describe_subset
from lib.evaluation.checkpoint_model import EvaluatedModel
from lib.evaluation.folder_counts import FolderCounts, FolderReading, Measure, count_folders
from lib.evaluation.shift_report import result_text, write_files
from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.files import names_sha256
from utils.storage.intervals import Accuracy
from utils.storage.journal import remove_journals
from utils.storage.measurement import Measurement, subset_label
from utils.storage.records import ShiftAccuracies, ShiftResult
from utils.storage.results import result_stem

PART = 10_000  # images after which an interrupted evaluation resumes
Sets = dict[str, ImageTree]


def evaluate_shift(
    evaluated: EvaluatedModel,
    root: str,
    reading: FolderReading,
    context: DistributedContext,
    provenance: Mapping[str, Any],
    logger: Logger,
    *,
    class_order: str = "auto",
    n_examples: int | None = None,
    image_ids: str | None = None,
    usual_sizes: tuple[int, int],
) -> ShiftResult:
    """Top-1 and top-5 on each test set: table, JSON, CSV, figure; resumes if interrupted.

    Args:
        root: one folder of class folders, or a folder of several.
        class_order: `DATA.class_order`, for a checkpoint without class names.
        n_examples, image_ids: only so many images of a set, evenly spread; or a file's list.
        usual_sizes: the network's own image and crop size; names of files tell others.

    Raises:
        UserError: a tree that is not in order, or classes that the network does not know.
    """

    def prepare() -> tuple[Sets, Sets]:
        names, outputs = evaluated.settings.classes, int(evaluated.model.num_classes)
        whole = {
            name: read_tree(folder).with_labels_of(names, outputs, class_order)
            for name, folder in find_test_sets(root).items()
        }
        for note in (note for tree in whole.values() for note in tree.notes):
            logger.warning(note)
        return whole, {n: choose(tree, n_examples, image_ids) for n, tree in whole.items()}

    whole, sets = context.from_main(prepare)
    n, total = (sum(len(tree.files) for tree in each.values()) for each in (sets, whole))
    names = [f"{name}/{file}" for name, tree in sets.items() for file in tree.files]
    subset = describe_subset(n, total, bool(image_ids), names_sha256(names))
    measurement = Measurement(
        "shift", "standard", evaluated.identity["sha256"], subset["sha256"], reading.img_size,
        reading.crop_size, class_order=class_order,
        checkpoint_name=evaluated.tag.removeprefix("_"),
        subset=subset_label(subset, total, bool(image_ids)), corruptions="+".join(sets),
    )  # fmt: skip
    usual = replace(
        measurement, resize=usual_sizes[0], crop=usual_sizes[1], class_order="auto",
        checkpoint_name="", subset="", corruptions="",
    )  # fmt: skip
    stem = result_stem(evaluated.folder, measurement, usual)
    counts = count_folders(
        evaluated.model, parts_of(sets), reading, context, logger, stem,
        measurement.fingerprint(), "test sets", measure_of(whole, evaluated, context.device),
    )  # fmt: skip
    provenance = {**provenance, "protocol": "standard", "precision": "fp32", "subset": subset}
    accuracies = {name: accuracies_of(counts, name, sets, whole) for name in sets}
    warnings = tuple(note for tree in whole.values() for note in tree.notes)
    result = ShiftResult(measurement, provenance, accuracies, warnings=warnings)
    if context.is_main:
        write_files(result, stem)
        remove_journals(stem)
    logger.info(result_text(result, stem))
    context.barrier()
    return result


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


def measure_of(sets: Sets, evaluated: EvaluatedModel, device: torch.device) -> Measure:
    """Top-1 and top-5 over all outputs, then over those of the set's classes alone.

    The latter is the 200-way accuracy that ImageNet-R and -A are published with.
    """
    absent = {}
    for name, tree in sets.items():
        absent[name] = torch.ones(int(evaluated.model.num_classes), dtype=torch.bool)
        absent[name][sorted(set(tree.labels))] = False
        absent[name] = absent[name].to(device)

    def outcomes(logits: torch.Tensor, labels: torch.Tensor, part: str) -> list[torch.Tensor]:
        present = logits.masked_fill(absent[part.rpartition("/")[0]], -torch.inf)
        return [correct_in_top(each, labels, k) for each in (logits, present) for k in (1, 5)]

    return Measure(4, outcomes)


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
