"""Evaluates a network on ImageNet-C: one pass over all folders, each result kept as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lib.algorithm.protocols import Protocol
from lib.data.folders import ImageTree
from lib.data.images import load_rgb
from lib.data.subsets import choose
from lib.evaluation.folder_counts import FolderReading, count_folders
from lib.imagenet_c.corruptions import corruptions_label
from lib.imagenet_c.report import make_result, result_text, write_files
from lib.imagenet_c.scan import find_folders, read_corruptions
from lib.imagenet_c.tree import CorruptionTree
from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.journal import remove_journals
from utils.storage.measurement import Measurement, subset_label
from utils.storage.records import ImageNetCResult
from utils.storage.results import result_stem


def evaluate_imagenet_c(
    model: nn.Module,
    root: str,
    class_names: Sequence[str] | None,
    *,
    protocol: Protocol,
    corruptions: Sequence[str] | None,
    img_size: int,
    crop_size: int,
    batch_size: int,
    workers: int,
    context: DistributedContext,
    folder: Path,
    provenance: Mapping[str, Any],
    logger: Logger,
    clean_accuracy: float | None = None,
    n_examples: int | None = None,
    image_ids: str | None = None,
    usual_sizes: tuple[int, int] | None = None,
    checkpoint_name: str = "",
    class_order: str = "auto",
) -> ImageNetCResult:
    """Accuracy per corruption and severity: table, JSON, CSV, figure; resumes if interrupted.

    Args:
        model: pixels (B, 3, H, W) in [0, 1] to logits (B, classes), on `context.device`.
        root: the tree, flat or by group.
        class_names: class of each output; None if unknown, then the tree must have them all.
        protocol: resizes before the centre crop, or crops alone.
        corruptions: names, `extra`, or `all`; None or nothing for the 15.
        img_size, crop_size: shorter side after the resize, side of the crop; pixels.
        batch_size, workers: images in a batch and reading processes, of this process.
        folder: where the results go, `imagenet_c_standard.json` and others of that name.
        provenance: as it goes into the JSON; protocol, precision and subset are filled in.
        clean_accuracy: top-1 on clean images, a fraction; None looks into `folder`.
        n_examples, image_ids: only so many images of a folder, evenly spread; or a file's list.
        usual_sizes: the network's own image and crop size; names of files tell others.
        checkpoint_name: what names of files say of the checkpoint.
        class_order: `DATA.class_order`, for a checkpoint without class names.

    Returns:
        what the JSON holds, on every process.

    Raises:
        UserError: a bad tree or image, or results of another evaluation in the way.
    """
    resize = img_size if protocol.resize_imagenet_c else None
    reading = FolderReading(resize, crop_size, batch_size, workers)

    def pick(tree: ImageTree) -> ImageTree:
        return choose(tree, n_examples, image_ids)

    def prepare() -> CorruptionTree:
        chosen = pick if n_examples or image_ids else None
        found = read_corruptions(root, find_folders(root, corruptions), chosen)
        if resize is None:
            require_size(found, crop_size)
        found = found.with_labels_of(class_names, num_classes, class_order)
        for warning in found.warnings():
            logger.warning(warning)
        return found

    num_classes: Any = len(class_names or ()) or model.num_classes
    tree = context.from_main(prepare)
    subset = tree.describe_subset(bool(image_ids))
    # Whatever the attacks' search is set to, these images are judged in full precision.
    provenance = {**provenance, "protocol": protocol.name, "precision": "fp32", "subset": subset}
    measurement = Measurement(
        "imagenet_c", protocol.name, provenance["checkpoint"]["sha256"], subset["sha256"], resize,
        crop_size, class_order=class_order, checkpoint_name=checkpoint_name,
        subset=subset_label(subset, tree.total, bool(image_ids)),
        corruptions=corruptions_label(tree.corruptions),
    )  # fmt: skip
    stem = result_stem(folder, measurement, usual_measurement(measurement, usual_sizes))
    same = measurement.fingerprint()
    counts = count_folders(model, tree.folders, reading, context, logger, stem, same, "ImageNet-C")
    result = make_result(counts, tree, measurement, provenance, clean_accuracy, folder)
    if context.is_main:
        write_files(result, stem)
        remove_journals(stem)
    logger.info(result_text(result, stem))
    context.barrier()
    return result


def usual_measurement(measured: Measurement, sizes: tuple[int, int] | None) -> Measurement:
    """All images and the 15 corruptions, at the network's own sizes."""
    img_size, crop = sizes or (measured.resize, measured.crop)
    resize = img_size if measured.resize else None
    return replace(
        measured,
        resize=resize,
        crop=crop,
        class_order="auto",
        checkpoint_name="",
        subset="",
        corruptions="",
    )


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
