"""Right answers on several folders of images, counted in one pass; what is counted is kept."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from lib.algorithm.metrics import correct_in_top, full_precision
from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pool import DeviceBatch
from lib.data.datasets import ImageBatches, eval_transform
from lib.data.folders import ImageTree
from lib.data.loader import share_of_workers
from lib.data.sampler import share_in_batches
from lib.evaluation.task import Task
from lib.evaluation.validation import read_batches
from utils.errors import UserError
from utils.figures.style import save_figure
from utils.logging import ProgressBar
from utils.storage.accuracy import Accuracy
from utils.storage.conditions import Conditions
from utils.storage.files import write_lines
from utils.storage.journal import ResumableRows, remove_journals
from utils.storage.results import ImageNetCResult, ShiftResult, result_stem, write_result

CHUNK = 512  # images of a folder that one process counts and the journal keeps as one row
PROGRESS_LINES = 20  # over the whole evaluation, where stdout is no terminal
FolderCounts = dict[str, list[int]]  # by folder: the measured columns' sums, then images
# (logits (B, classes), labels (B,), folder's name) to a (B,) bool for each column
Measure = Callable[[torch.Tensor, torch.Tensor, str], Sequence[torch.Tensor]]


def top1_and_top5(logits: torch.Tensor, labels: torch.Tensor, _: str) -> list[torch.Tensor]:
    """Whether the label is the largest output, and whether it is among the five largest."""
    return [correct_in_top(logits, labels, 1), correct_in_top(logits, labels, 5)]


def count_folders(
    task: Task,
    folders: Mapping[str, ImageTree],
    conditions: Conditions,
    title: str,
    measure: Measure = top1_and_top5,
) -> FolderCounts:
    """Every folder's counts over all processes; what journals hold is not evaluated again.

    Folders are cut into chunks and these into batches, the same for any number of processes and
    after any interruption: so each image keeps its neighbours, and the sums their rounding.

    Args:
        folders: images by name, with the network's labels.
        title: of the progress.
        measure: what is counted of each image.
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
            counted[key] = count_images(model, islice(batches, len(parts)), name, measure)
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
    model: nn.Module, batches: Iterable[DeviceBatch], name: str, measure: Measure
) -> list[int]:
    """Columns of a folder's images, summed on the device: reading them is the only wait.

    Outputs that are not finite are refused, for any class could be called the largest there.
    """
    sums = []
    for images, labels, _ in batches:
        with full_precision():
            logits = model(images)
        broken = ~logits.isfinite().all(dim=1)
        columns = [*measure(logits, labels, name), torch.ones_like(broken), broken]
        sums.append(torch.stack(columns).sum(dim=1))
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
