"""Right answers on several folders of images, counted in one pass; what is counted is kept."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.algorithm.metrics import correct_in_top, full_precision
from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pool import DeviceBatch
from lib.data.datasets import FolderBatches, eval_transform
from lib.data.folders import ImageTree
from lib.data.loader import make_loader
from lib.data.sampler import EvaluationSampler, share_in_batches
from lib.data.subsets import choose
from lib.data.to_device import on_device
from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.logging import Logger, ProgressBar
from utils.storage.conditions import Conditions
from utils.storage.journal import ResumableRows, remove_journals
from utils.storage.results import result_stem

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
        model: pixels (B, 3, H, W) in [0, 1] to logits (B, num_classes), on `context.device`.
        class_names: class of each output; None if unknown.
        img_size: shorter side before the crop, pixels; None crops alone.
        crop_size: side of the network's input, pixels.
        batch_size, workers: images in a batch, and reading processes, of one process.
        folder: where the results go.
        provenance: as it goes into the JSON, without the subset.
        class_order: `DATA.class_order`, for a checkpoint without class names.
        n_examples, image_ids: only so many images of a folder, evenly spread; or a file's list.
        usual_sizes: the network's own image and crop size; names of files tell others.
        network, checkpoint_file: see `Conditions`.
    """

    model: nn.Module
    num_classes: int
    class_names: Sequence[str] | None
    img_size: int | None
    crop_size: int
    batch_size: int
    workers: int
    context: DistributedContext
    logger: Logger
    folder: Path
    provenance: Mapping[str, Any]
    class_order: str = "auto"
    n_examples: int | None = None
    image_ids: str | None = None
    usual_sizes: tuple[int, int] | None = None
    network: str = ""
    checkpoint_file: str = ""

    def pick(self, tree: ImageTree) -> ImageTree:
        """The images of a folder that are evaluated."""
        return choose(tree, self.n_examples, self.image_ids)

    def with_labels(self, tree: ImageTree) -> ImageTree:
        """The images with labels that index the network's outputs; logs what is odd about them.

        Raises:
            UserError: a class that the network does not know.
        """
        tree = tree.with_labels_of(self.class_names, self.num_classes, self.class_order)
        for note in tree.notes:
            self.logger.warning(note)
        return tree

    def conditions(
        self, kind: str, protocol: str, subset: Mapping[str, Any], folders: str
    ) -> Conditions:
        """The conditions of a result.

        Args:
            subset: of `describe_subset`.
            folders: what names of files say of the folders.
        """
        return Conditions(
            kind=kind,
            protocol=protocol,
            checkpoint=self.provenance["checkpoint"]["sha256"],
            images=subset["sha256"],
            resize=self.img_size,
            crop=self.crop_size,
            network=self.network,
            checkpoint_file=self.checkpoint_file,
            folders=folders,
            subset=subset["label"],
        )

    def stem(self, conditions: Conditions) -> Path:
        """Path of a result's files without extension; asked for when they are written."""
        img_size, crop = self.usual_sizes or (self.img_size, self.crop_size)
        usual = {"resize": None if self.img_size is None else img_size, "crop": crop}
        return result_stem(self.folder, conditions, usual)

    def finish(self, conditions: Conditions, write: Callable[[], None], text: str) -> None:
        """Write and print the result; from then on nothing is left to resume."""
        if self.context.is_main:
            write()
            remove_journals(self.folder, conditions.digest)
        self.logger.info(text)
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
        context, names = self.context, list(folders)
        chunks = {
            f"{name}[{images[0]}:{images[-1] + 1}]": (number, images)
            for number, (name, tree) in enumerate(folders.items())
            for images in share_in_batches(range(len(tree.files)), CHUNK)
        }
        with ResumableRows(self.folder, conditions.digest, context, read_counts) as journal:
            counts: FolderCounts = dict(journal.found.get("counts", {}))
            left = [key for key in chunks if key not in counts]
            left.sort(key=lambda key: -len(chunks[key][1]))  # so that the shares are even
            if len(left) < len(chunks):
                done = f"{len(chunks) - len(left)} of {len(chunks)}"
                self.logger.info(f"resuming: {done} chunks of images were evaluated before")
            own = left[context.rank :: context.world_size]
            batches = self.read(list(folders.values()), [chunks[key] for key in own], title)
            counted: FolderCounts = {}
            with frozen_eval(self.model):  # evaluation mode, no gradients
                for key in own:
                    number, images = chunks[key]
                    of_chunk = islice(batches, len(share_in_batches(images, self.batch_size)))
                    counted[key] = count_images(self.model, of_chunk, names[number], measure)
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
        transform = eval_transform(self.img_size, self.crop_size)
        dataset = FolderBatches(trees, transform, self.crop_size)
        sampler = EvaluationSampler(
            [
                (i, part)
                for i, images in chunks
                for part in share_in_batches(images, self.batch_size)
            ]
        )
        loader = make_loader(dataset, sampler, min(self.workers, len(sampler)), device, local)
        batches = on_device(loader, device, next(self.model.parameters()).dtype)
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
