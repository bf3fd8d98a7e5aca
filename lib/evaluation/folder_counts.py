"""Right answers on several folders of images, counted in one pass; each is kept as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pool import DeviceBatch
from lib.data.datasets import FolderBatches, eval_transform
from lib.data.folders import ImageTree
from lib.data.loader import make_loader
from lib.data.sampler import EvaluationSampler, share_in_batches
from lib.data.subsets import choose
from lib.data.to_device import on_device
from lib.evaluation.folder_measure import Measure, count_folder, top1_and_top5
from utils.distributed.context import DistributedContext
from utils.logging import Logger, ProgressBar
from utils.storage.conditions import Conditions
from utils.storage.journal import ResumableRows, remove_journals
from utils.storage.results import result_stem

PROGRESS_LINES = 20  # over the whole evaluation, where stdout is no terminal
FolderCounts = dict[str, list[int]]  # by folder: the measured columns' sums, then images


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

    def conditions(
        self, kind: str, protocol: str, subset: Mapping[str, Any], folders: str
    ) -> tuple[Conditions, Path]:
        """The conditions of a result, and the path of its files without extension.

        Args:
            subset: of `describe_subset`.
            folders: what names of files say of the folders.
        """
        conditions = Conditions(
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
        img_size, crop = self.usual_sizes or (self.img_size, self.crop_size)
        usual = {"resize": None if self.img_size is None else img_size, "crop": crop}
        return conditions, result_stem(self.folder, conditions, usual)

    def finish(self, stem: Path, write: Callable[[], None], text: str) -> None:
        """Write and print the result; from then on nothing is left to resume."""
        if self.context.is_main:
            write()
            remove_journals(stem)
        self.logger.info(text)
        self.context.barrier()

    def count(
        self,
        folders: Mapping[str, ImageTree],
        conditions: Conditions,
        stem: Path,
        what: str,
        measure: Measure = top1_and_top5,
        columns: int = 2,
    ) -> FolderCounts:
        """Every folder's counts over all processes; what journals hold is not evaluated again.

        Args:
            folders: images by name, with the network's labels.
            what: words for the progress.
            measure, columns: what is counted of each image, and how many numbers that is.

        Raises:
            UserError: an image that cannot be read, outputs that are not finite, or journals of
                another evaluation.
        """
        context, numbers = self.context, {name: number for number, name in enumerate(folders)}
        read_row = partial(read_counts, columns + 1)
        with ResumableRows(stem, conditions.fingerprint(), context, read_row) as journal:
            complete, own = finished_folders(journal.found, context)
            left = {n: i for n, i in numbers.items() if n not in complete and n not in own}
            if len(left) < len(folders):
                done = f"{len(folders) - len(left)} of {len(folders)}"
                self.logger.info(f"resuming: {done} folders were evaluated before")
            sizes = {number: len(folders[name].files) for name, number in left.items()}
            rank, world_size = context.rank, context.world_size
            shares = {
                number: share_in_batches(range(size), self.batch_size, rank, world_size)
                for number, size in sizes.items()
            }
            sampler = EvaluationSampler([(number, b) for number in shares for b in shares[number]])
            share = share_name(context.rank, context.world_size)
            batches = self.read(list(folders.values()), sampler, what)
            with frozen_eval(self.model):  # evaluation mode, no gradients
                for name, number in left.items():
                    of_folder = islice(batches, len(shares[number]))
                    own[name] = count_folder(self.model, of_folder, name, measure)
                    journal.add(share, {name: own[name]})
                    journal.flush()
        counts = [complete, *context.gather(own)]
        return {name: add_up(s[name] for s in counts if name in s) for name in folders}

    def read(
        self, trees: Sequence[ImageTree], sampler: EvaluationSampler, what: str
    ) -> Iterator[DeviceBatch]:
        """This process's batches of all folders, through one loader, under a bar."""
        device = self.context.device
        transform = eval_transform(self.img_size, self.crop_size)
        dataset = FolderBatches(trees, transform, self.crop_size)
        workers = min(self.workers, len(sampler))
        local = self.context.local_processes
        loader = make_loader(dataset, sampler, workers, device, local)
        batches = on_device(loader, device, next(self.model.parameters()).dtype)
        every = max(1, len(sampler) // PROGRESS_LINES)
        return ProgressBar(self.logger, len(sampler), what, every).over(batches)


def share_name(rank: int, world_size: int) -> str:
    """The journal's phase for the share of one process."""
    return f"rank {rank} of {world_size}"


def read_counts(columns: int, phase: str, name: str, values: list) -> tuple[str, list[int]]:
    """A row of the journal; ValueError where it is damaged."""
    int(phase.rpartition(" ")[2])
    if len(values) not in (0, columns):
        raise ValueError(f"{columns} numbers are needed")
    return name, values


def finished_folders(
    found: Mapping[str, FolderCounts], context: DistributedContext
) -> tuple[FolderCounts, FolderCounts]:
    """What needs no evaluation any more.

    Args:
        found: by `share_name`, the counts that interrupted runs have left.

    Returns:
        folders of which all processes of some run had finished their shares, added up; and further
        ones of which this process had finished its share, in a run of as many processes as now.
    """
    complete: FolderCounts = {}
    for world_size in {int(phase.rpartition(" ")[2]) for phase in found}:
        shares = [found.get(share_name(rank, world_size), {}) for rank in range(world_size)]
        for name in set(shares[0]).intersection(*shares):
            complete[name] = add_up(share[name] for share in shares)
    own = found.get(share_name(context.rank, context.world_size), {})
    return complete, {name: counts for name, counts in own.items() if name not in complete}


def add_up(shares: Iterable[list[int]]) -> list[int]:
    """Element-wise sums; an empty share is one without images."""
    return [sum(column) for column in zip(*filter(None, shares), strict=True)]
