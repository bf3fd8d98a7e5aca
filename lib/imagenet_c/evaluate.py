"""Evaluates a network on ImageNet-C: one pass over all folders, each result kept as it comes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lib.algorithm.protocols import Protocol
from lib.data.folders import ImageTree
from lib.data.images import load_rgb
from lib.data.subsets import describe_subset
from lib.evaluation.folder_counts import FolderEvaluation
from lib.imagenet_c.corruptions import corruptions_label
from lib.imagenet_c.report import make_result, result_text, write_files
from lib.imagenet_c.tree import find_folders, read_corruptions
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
        UserError: a bad tree or image.
    """
    if not protocol.resize_imagenet_c:
        evaluation = replace(evaluation, img_size=None)

    def read() -> tuple[dict[str, ImageTree], int]:
        trees, total = read_corruptions(
            root,
            find_folders(root, corruptions),
            lambda images: evaluation.with_labels(evaluation.pick(images)),
        )
        if evaluation.img_size is None:
            require_size(trees, evaluation.crop_size)
        return trees, total

    trees, total = evaluation.context.from_main(read)
    images = next(iter(trees.values()))
    listed = bool(evaluation.image_ids)
    subset = describe_subset(len(images.files), total, listed, images.fingerprint)
    label = corruptions_label(list(dict.fromkeys(name.rpartition("/")[0] for name in trees)))
    conditions = evaluation.conditions("imagenet_c", protocol.name, subset, label)
    counts = evaluation.count(trees, conditions, "corruptions")
    provenance = {**evaluation.provenance, "subset": subset}
    result = make_result(counts, images, conditions, provenance, clean_accuracy, evaluation.folder)
    stem = evaluation.stem(conditions)
    evaluation.finish(conditions, lambda: write_files(result, stem), result_text(result, stem))
    return result


def require_size(trees: Mapping[str, ImageTree], side: int) -> None:
    """The first image of every folder must be as large as the crop, or zeros would fill it up.

    Raises:
        UserError: names an image that is smaller.
    """
    for tree in trees.values():
        width, height = load_rgb(tree.path(0)).size
        if min(width, height) < side:
            raise UserError(
                f"{tree.path(0)} has {width} x {height} pixels, less than the crop of {side}; set"
                " DATA.crop_size, or resize with --protocol freeat"
            )
