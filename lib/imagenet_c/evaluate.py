"""ImageNet-C: accuracy on every corruption and severity, in JSON, CSV, a figure and a table."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from lib.algorithm.protocols import PROTOCOLS
from lib.data.folders import ImageTree, load_rgb
from lib.evaluation.shift import accuracy_cells, count_folders, finish
from lib.evaluation.task import Task
from lib.imagenet_c.corruptions import (
    GROUPS,
    SEVERITIES,
    STANDARD,
    corruptions_label,
    find_folders,
    group_of,
    read_corruptions,
    summarise,
)
from utils.config.settings import Data
from utils.errors import UserError
from utils.figures.evaluation import imagenet_c
from utils.figures.style import run_label
from utils.storage.conditions import Conditions
from utils.storage.results import (
    Accuracy,
    AttackResult,
    CleanReference,
    CorruptionAccuracies,
    ImageNetCResult,
    read_result,
)
from utils.text import table


def evaluate_imagenet_c(task: Task, root: str) -> ImageNetCResult:
    """Accuracy per corruption and severity: table, JSON, CSV, figure; resumes if interrupted."""
    task.announce(f"corruptions at {root}")
    data, options = task.config.DATA, task.config.OPTIONS
    protocol, folder = PROTOCOLS[task.config.EVAL.protocol], task.evaluated.folder
    resize = data.img_size if protocol.resize_imagenet_c else None

    def read() -> tuple[dict[str, ImageTree], int]:
        trees, total = read_corruptions(
            root,
            find_folders(root, options.corruptions),
            lambda images: task.pick(task.with_labels(images)),
        )
        cropped = check_size(trees, data.crop_size) if resize is None else []
        return task.with_notes(root, trees, cropped), total

    trees, total = task.context.from_main(read)
    images = next(iter(trees.values()))
    label = corruptions_label(list(dict.fromkeys(name.rpartition("/")[0] for name in trees)))
    subset = task.subset(len(images.files), total, images.fingerprint)
    conditions = task.conditions("imagenet_c", protocol.name, resize, subset, folders=label)
    counts = count_folders(task, trees, conditions, "corruptions")
    clean = CleanReference(options.clean_accuracy, "--clean_accuracy")
    if clean.accuracy is None:
        clean = find_clean_accuracy(folder, conditions, len(images.files), data)
    result = make_result(counts, images, conditions, task.provenance(subset), clean)
    run = run_label(folder.resolve().name)
    draw = partial(imagenet_c, {run: result}, f"Common corruptions, {run}")
    finish(task, result, csv_rows(result), draw, result_text(result))
    return result


def check_size(trees: Mapping[str, ImageTree], side: int) -> list[str]:
    """A warning where first images are larger than the crop; smaller ones are refused."""
    sizes = set()
    for tree in trees.values():
        width, height = load_rgb(tree.path(0)).size
        if min(width, height) < side:
            raise UserError(
                f"{tree.path(0)} has {width} x {height} pixels, less than the crop of {side}; set"
                " DATA.crop_size, or resize with --protocol freeat"
            )
        sizes.add((min(width, height), f"{width} x {height}"))
    smallest, size = min(sizes)
    return [
        f"the images have {size} pixels, of which the middle {side} x {side} alone are seen;"
        " --protocol freeat resizes them first"
    ] * (smallest > side)


def make_result(
    counts: Mapping[str, Sequence[int]],
    images: ImageTree,
    conditions: Conditions,
    provenance: Mapping[str, Any],
    clean: CleanReference,
) -> ImageNetCResult:
    """The content of the JSON; counts are, by folder, top-1 right, top-5 right, images."""
    corruptions = {}
    for name in dict.fromkeys(folder.rpartition("/")[0] for folder in counts):
        rows = [counts[f"{name}/{severity}"] for severity in SEVERITIES]
        top1, top5 = (tuple(Accuracy(row[column], row[2]) for row in rows) for column in (0, 1))
        corruptions[name] = CorruptionAccuracies(group_of(name), top1, top5)
    classes = sorted({file.partition("/")[0] for file in images.files})
    summary = summarise(fractions(corruptions), classes, clean.accuracy)
    return ImageNetCResult(conditions, provenance, images.notes, corruptions, clean, summary)


def fractions(corruptions: Mapping[str, CorruptionAccuracies]) -> dict[str, list[float]]:
    """Top-1 accuracies in [0, 1] over the severities."""
    return {name: [a.fraction for a in entry.top1] for name, entry in corruptions.items()}


def find_clean_accuracy(
    run_dir: Path, conditions: Conditions, n: int, data: Data
) -> CleanReference:
    """Clean top-1 of an attack evaluation of the same checkpoint, on the same or `n` images.

    The same images go before more, those read as `data` says before others, new ones before old.
    """
    way = data.img_size, data.crop_size, data.interpolation
    candidates = []
    for path in run_dir.glob("*.json"):
        with suppress(UserError):  # another program's file, or a broken one
            result = read_result(path)
            its = result.conditions
            if isinstance(result, AttackResult) and its.checkpoint == conditions.checkpoint:
                same_images, top1 = its.images == conditions.images, result.clean.top1
                same_way = (its.resize, its.crop, its.interpolation) == way
                if same_images or top1.n >= n:
                    key = same_images, same_way, top1.n, path.stat().st_mtime_ns
                    candidates.append((*key, top1.fraction, path.name))
    *_, accuracy, source = max(candidates, default=(None, None))
    return CleanReference(accuracy, source)


def csv_rows(result: ImageNetCResult) -> list[dict[str, Any]]:
    """One row per corruption and severity."""
    return [
        {"corruption": name, "group": entry.group, "severity": severity, "n": top1.n}
        | accuracy_cells({"top1": top1, "top5": top5}, with_interval=["top1"])
        for name, entry in result.corruptions.items()
        for severity, top1, top5 in zip(SEVERITIES, entry.top1, entry.top5, strict=True)
    ]


def result_text(result: ImageNetCResult) -> str:
    """The table and the metrics below it, accuracies in percent."""
    errors, top1 = result.summary.CE, fractions(result.corruptions)
    lines: dict[str, tuple[str, ...]] = {name: (name,) for name in top1}
    lines |= {f"{group} (mean)": members for group, members in GROUPS.items()}
    lines["all 15 (mean)"] = STANDARD
    rows = []
    for label, members in lines.items():
        if all(name in top1 for name in members):
            values = [fmean(column) for column in zip(*(top1[n] for n in members), strict=True)]
            cells = [f"{100 * value:.2f}" for value in (*values, fmean(values))]
            if errors:
                known = all(name in errors for name in members)
                cells.append(f"{fmean(errors[n] for n in members):.1f}" if known else "")
            rows.append([label, *cells])
    header = ["top-1 (%), severity", *map(str, SEVERITIES), "mean"] + ["CE"] * bool(errors)
    return "\n".join([table(header, rows), "", *summary_lines(result)])


def summary_lines(result: ImageNetCResult) -> list[str]:
    """The metrics over the 15, each with the reason where it is left out."""
    summary, clean = result.summary, result.clean
    percents = {
        "mean_accuracy": ("mean accuracy over the 15", 100),
        "mean_error": ("mean error, unnormalised", 100),
        "mCE": ("mCE", 1),
        "relative_mCE": ("relative mCE", 1),
    }
    lines = []
    for key, (label, unit) in percents.items():
        value = getattr(summary, key)
        text = f"left out: {summary.left_out.get(key)}"
        lines.append(f"{label:<26} {text if value is None else f'{unit * value:.2f} %'}")
    if summary.relative_mCE is not None and clean.accuracy is not None:
        lines[-1] += f" (clean accuracy {100 * clean.accuracy:.2f} %, {clean.source})"
    accuracies = fractions(result.corruptions)
    if set(accuracies) != set(STANDARD):  # of which AlexNet's errors are no yardstick
        error = 1 - fmean(value for values in accuracies.values() for value in values)
        label = f"mean error of the {len(accuracies)}"
        lines.append(f"{label:<26} {100 * error:.2f} %, over all that were evaluated")
    return lines
