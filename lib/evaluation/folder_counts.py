"""Right answers on several folders of images, counted in one pass; what is counted is kept."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from lib.algorithm.metrics import correct_in_top, full_precision
from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pool import DeviceBatch
from lib.data.datasets import FolderBatches, eval_transform
from lib.data.folders import ImageTree
from lib.data.loader import make_loader
from lib.data.sampler import EvaluationSampler, share_in_batches
from lib.data.subsets import choose, describe_subset
from lib.data.to_device import on_device
from lib.evaluation.load_model import EvaluatedModel
from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.figures.style import save_figure
from utils.logging import Logger, ProgressBar
from utils.storage.conditions import Conditions
from utils.storage.files import write_csv
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


@dataclass(frozen=True)
class FolderEvaluation:
    """What evaluations on ImageNet-C and on shifted test sets have in common.

    Attributes:
        evaluated: the network.
        conditions: of the result, without those of the images.
        usual: sizes of the network's training, that files are not named by; see `Conditions`.
        provenance: as it goes into the JSON, without the subset.
        class_order: `DATA.class_order`, for a checkpoint without class names.
        n_examples, image_ids: only so many images of a folder, evenly spread; or a file's list.
        batch_size, workers: images in a batch, and workers, of one process.
    """

    evaluated: EvaluatedModel
    conditions: Conditions
    usual: Mapping[str, Any]
    provenance: Mapping[str, Any]
    class_order: str
    n_examples: int | None
    image_ids: str | None
    batch_size: int
    workers: int
    context: DistributedContext
    logger: Logger

    def pick(self, tree: ImageTree) -> ImageTree:
        """The images of a folder that are evaluated."""
        return choose(tree, self.n_examples, self.image_ids)

    def with_labels(self, tree: ImageTree) -> ImageTree:
        """The images with labels that index the network's outputs; logs what is odd about them.

        Raises:
            UserError: a class that the network does not know.
        """
        outputs = self.evaluated.model.num_classes
        tree = tree.with_labels_of(self.evaluated.settings.classes, outputs, self.class_order)
        for note in tree.notes:
            self.logger.warning(note)
        return tree

    def on_images(
        self, n: int, total: int, sha256: str, folders: str
    ) -> tuple[Conditions, dict[str, Any]]:
        """Conditions and provenance of a result on `n` out of `total` images.

        Args:
            sha256: of the list of images.
            folders: what names of files say of the folders.
        """
        subset = describe_subset(n, total, bool(self.image_ids), sha256)
        conditions = replace(
            self.conditions, images=sha256, subset=subset["label"], folders=folders
        )
        return conditions, {**self.provenance, "subset": subset}

    def finish(
        self,
        result: ImageNetCResult | ShiftResult,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        draw: Callable[[], Figure],
        text: str,
    ) -> None:
        """Write JSON, CSV and figure, and print; from then on nothing is left to resume."""
        folder = self.evaluated.folder
        if self.context.is_main:
            stem = result_stem(folder, result.conditions, self.usual)
            write_result(Path(f"{stem}.json"), result)
            write_csv(Path(f"{stem}.csv"), columns, rows)
            save_figure(draw(), stem)
            remove_journals(folder, result.conditions.digest)
            self.logger.info(f"{text}\nwritten: {stem}.json, .csv, .png, .pdf")
        self.context.barrier()

    def count(
        self,
        folders: Mapping[str, ImageTree],
        conditions: Conditions,
        title: str,
        measure: Measure = top1_and_top5,
    ) -> FolderCounts:
        """Every folder's counts over all processes; what journals hold is not evaluated again.

        Folders are cut into chunks and these into batches, the same for any number of processes
        and after any interruption: so each image keeps its neighbours, and the sums their rounding.

        Args:
            folders: images by name, with the network's labels.
            title: of the progress.
            measure: what is counted of each image.

        Raises:
            UserError: an image that cannot be read, or outputs that are not finite.
        """
        context, folder, names = self.context, self.evaluated.folder, list(folders)
        chunks = {
            f"{name}[{images[0]}:{images[-1] + 1}]": (number, images)
            for number, (name, tree) in enumerate(folders.items())
            for images in share_in_batches(range(len(tree.files)), CHUNK)
        }
        with ResumableRows(folder, conditions.digest, context, read_counts) as journal:
            counts: FolderCounts = dict(journal.found.get("counts", {}))
            left = [key for key in chunks if key not in counts]
            left.sort(key=lambda key: -len(chunks[key][1]))  # so that the shares are even
            if len(left) < len(chunks):
                done = f"{len(chunks) - len(left)} of {len(chunks)}"
                self.logger.info(f"resuming: {done} chunks of images were evaluated before")
            own = left[context.rank :: context.world_size]
            batches = self.read(list(folders.values()), [chunks[key] for key in own], title)
            model, counted = self.evaluated.model, FolderCounts()
            with frozen_eval(model):  # evaluation mode, no gradients
                for key in own:
                    number, images = chunks[key]
                    of_chunk = islice(batches, len(share_in_batches(images, self.batch_size)))
                    counted[key] = count_images(model, of_chunk, names[number], measure)
                    journal.add("counts", {key: counted[key]})
            journal.flush()
        for share in context.gather(counted):
            counts |= share
        rows = defaultdict(list)
        for key, (number, _) in chunks.items():
            rows[names[number]].append(counts[key])
        return {name: [sum(column) for column in zip(*rows[name], strict=True)] for name in names}

    def read(
        self, trees: Sequence[ImageTree], chunks: Sequence[tuple[int, Sequence[int]]], title: str
    ) -> Iterator[DeviceBatch]:
        """Batches of chunks, (number of the tree, positions), through one loader, under a bar."""
        device, local = self.context.device, self.context.local_processes
        resize, crop = self.conditions.resize, self.conditions.crop
        dataset = FolderBatches(trees, eval_transform(resize, crop), crop)
        sampler = EvaluationSampler(
            [
                (i, part)
                for i, images in chunks
                for part in share_in_batches(images, self.batch_size)
            ]
        )
        loader = make_loader(dataset, sampler, min(self.workers, len(sampler)), device, local)
        batches = on_device(loader, device, next(self.evaluated.model.parameters()).dtype)
        every = max(1, len(sampler) // PROGRESS_LINES)
        return ProgressBar(self.logger, len(sampler), title, every).over(batches)


@torch.no_grad()
def count_images(
    model: nn.Module, batches: Iterable[DeviceBatch], name: str, measure: Measure
) -> list[int]:
    """Columns of a folder's images, summed on the device: reading them is the only wait.

    Raises:
        UserError: outputs that are not finite, for there any class could be called the largest.
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
