"""Evaluates a network on ImageNet-C: one pass over all folders, each result kept as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lib.algorithm.protocols import Protocol
from lib.data.images import load_rgb
from lib.evaluation.folder_counts import FolderEvaluation
from lib.imagenet_c.corruptions import corruptions_label
from lib.imagenet_c.report import make_result, result_text, write_files
from lib.imagenet_c.scan import CorruptionTree, find_folders, read_corruptions
from utils.errors import UserError
from utils.storage.results import ImageNetCResult


def evaluate_imagenet_c(
    evaluation: FolderEvaluation,
    root: str,
    protocol: Protocol,
    corruptions: Sequence[str] | None = None,
    clean_accuracy: float | None = None,
) -> ImageNetCResult:
    """Accuracy per corruption and severity: table, JSON, CSV, figure; resumes if interrupted.

    Args:
        evaluation: the network, and how images are read.
        root: the tree, flat or by group.
        protocol: resizes before the centre crop, or crops alone.
        corruptions: names, `extra`, or `all`; None or nothing for the 15.
        clean_accuracy: top-1 on clean images, a fraction; None looks into the run folder.

    Returns:
        what the JSON holds, on every process.

    Raises:
        UserError: a bad tree or image, or results of another evaluation in the way.
    """
    if not protocol.resize_imagenet_c:
        evaluation = replace(evaluation, img_size=None)
    tree = evaluation.context.from_main(lambda: read_tree(evaluation, root, corruptions))
    subset = tree.describe_subset(bool(evaluation.image_ids))
    label = corruptions_label(tree.corruptions)
    conditions, stem = evaluation.conditions("imagenet_c", protocol.name, subset, label)
    counts = evaluation.count(tree.folders, conditions, stem, "corruptions")
    provenance = {**evaluation.provenance, "subset": subset}
    result = make_result(counts, tree, conditions, provenance, clean_accuracy, evaluation.folder)
    evaluation.finish(stem, lambda: write_files(result, stem), result_text(result, stem))
    return result


def read_tree(
    evaluation: FolderEvaluation, root: str, corruptions: Sequence[str] | None
) -> CorruptionTree:
    """The images, with the network's labels; logs what is odd about them.

    Raises:
        UserError: the tree is not in order, or its images are smaller than the crop.
    """
    part = evaluation.n_examples or evaluation.image_ids
    folders = find_folders(root, corruptions)
    found = read_corruptions(root, folders, evaluation.pick if part else None)
    if evaluation.img_size is None:
        require_size(found, evaluation.crop_size)
    names, order = evaluation.class_names, evaluation.class_order
    found = found.with_labels_of(names, evaluation.num_classes, order)
    for warning in found.warnings():
        evaluation.logger.warning(warning)
    return found


def require_size(tree: CorruptionTree, side: int) -> None:
    """The first image of every folder must be as large as the crop, or zeros would fill it up.

    Raises:
        UserError: names an image that is smaller.
    """
    for images in tree.folders.values():
        width, height = load_rgb(images.path(0)).size
        if min(width, height) < side:
            raise UserError(
                f"{images.path(0)} has {width} x {height} pixels, less than the crop of {side}; set"
                " DATA.crop_size, or resize with --protocol freeat"
            )
