"""Evaluates a network on ImageNet-C: one pass over all folders, each result kept as it comes."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lib.data.folders import ImageTree
from lib.data.images import load_rgb
from lib.evaluation.folder_counts import FolderEvaluation
from lib.imagenet_c.corruptions import corruptions_label
from lib.imagenet_c.report import (
    COLUMNS,
    csv_rows,
    find_clean_accuracy,
    make_result,
    result_text,
)
from lib.imagenet_c.tree import find_folders, read_corruptions
from utils.errors import UserError
from utils.figures.imagenet_c import imagenet_c
from utils.figures.style import run_label
from utils.storage.results import CleanReference, ImageNetCResult


def evaluate_imagenet_c(
    evaluation: FolderEvaluation,
    root: str,
    corruptions: Sequence[str] | None = None,
    clean_accuracy: float | None = None,
) -> ImageNetCResult:
    """Accuracy per corruption and severity: table, JSON, CSV, figure; resumes if interrupted.

    Args:
        evaluation: the network, and how images are read.
        root: the tree, flat or by group.
        corruptions: names, `extra`, or `all`; None or nothing for the 15.
        clean_accuracy: top-1 on clean images, a fraction; None looks into the run folder.

    Returns:
        what the JSON holds, on every process.

    Raises:
        UserError: a bad tree or image.
    """

    def read() -> tuple[dict[str, ImageTree], int]:
        trees, total = read_corruptions(
            root,
            find_folders(root, corruptions),
            lambda images: evaluation.with_labels(evaluation.pick(images)),
        )
        if evaluation.conditions.resize is None:
            require_size(trees, evaluation.conditions.crop)
        return trees, total

    trees, total = evaluation.context.from_main(read)
    images = next(iter(trees.values()))
    label = corruptions_label(list(dict.fromkeys(name.rpartition("/")[0] for name in trees)))
    conditions, provenance = evaluation.on_images(
        len(images.files), total, images.fingerprint, label
    )
    counts = evaluation.count(trees, conditions, "corruptions")
    folder = evaluation.evaluated.folder
    clean = CleanReference(clean_accuracy, "--clean_accuracy")
    if clean_accuracy is None:
        clean = find_clean_accuracy(folder, conditions, len(images.files))
    result = make_result(counts, images, conditions, provenance, clean)
    run = run_label(folder.resolve().name)

    def draw() -> Figure:
        return imagenet_c({run: result}, f"Common corruptions, {run}")

    evaluation.finish(result, COLUMNS, csv_rows(result), draw, result_text(result))
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
