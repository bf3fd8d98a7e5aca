"""Evaluates a network on ImageNet-C: one pass over all folders, each result kept as it comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.metrics import correct_in_top
from lib.algorithm.pgd import attacking
from lib.algorithm.protocols import Protocol
from lib.data.datasets import eval_transform
from lib.data.loader import make_loader, on_device
from lib.imagenet_c.corruptions import choose_corruptions, corruptions_label
from lib.imagenet_c.dataset import CorruptionBatches, GroupPlan
from lib.imagenet_c.report import make_result, result_text, write_files
from lib.imagenet_c.scan import read_corruptions
from lib.imagenet_c.shares import (
    Counts,
    GroupCounts,
    add_up,
    finished_groups,
    read_counts,
    share_name,
)
from lib.imagenet_c.tree import CorruptionTree, require_size
from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.journal import ResumableRows, remove_journals
from utils.storage.measurement import Measurement, subset_label
from utils.storage.records import ImageNetCResult
from utils.storage.results import result_stem

PROGRESS_LINES = 20  # over the whole evaluation, where stdout is no terminal


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
) -> ImageNetCResult:
    """Accuracy per corruption and severity: table, JSON, CSV, figure; goes on if interrupted.

    Args:
        model: pixels (B, 3, H, W) in [0, 1] to logits (B, classes), on `context.device`.
        root: the tree, flat or by group.
        class_names: class of each output; None if unknown, then the tree must have them all.
        protocol: resizes before the centre crop, or crops alone.
        corruptions: names, perhaps `extra`; None or nothing for the 15.
        img_size, crop_size: shorter side after the resize, side of the crop; pixels.
        batch_size, workers: images in a batch and reading processes, of this process.
        folder: where the results go, `imagenet_c_standard.json` and others of that name.
        provenance: as it goes into the JSON; protocol, precision and subset are filled in.
        clean_accuracy: top-1 on clean images, a fraction; None looks into `folder`.
        n_examples, image_ids: only so many images of a folder, evenly spread; or a file's list.
        usual_sizes: the network's own image and crop size; names of files tell others.
        checkpoint_name: what names of files say of the checkpoint.

    Returns:
        what the JSON holds, on every process.

    Raises:
        UserError: a bad tree or image, or results of another evaluation in the way.
    """
    names = choose_corruptions(corruptions)
    resize = img_size if protocol.resize_imagenet_c else None

    def prepare() -> tuple[CorruptionTree, dict[str, Any], str] | None:
        if not context.is_main:
            return None  # one process lists the folders and tells the others
        whole = checked_tree(root, names, class_names, model, None if resize else crop_size)
        for warning in whole.warnings():
            logger.warning(warning)
        tree, subset = whole.subset(n_examples, image_ids)
        label = subset_label(subset, max(whole.sizes), listed=bool(image_ids))
        return tree, subset, label

    tree, subset, label = context.gather(context.run_and_share_errors(prepare))[0]
    # Whatever the attacks' search is set to, these images are judged in full precision.
    provenance = {**provenance, "protocol": protocol.name, "precision": "fp32", "subset": subset}
    dataset = CorruptionBatches(tree, eval_transform(resize, crop_size), crop_size)
    measurement = Measurement(
        "imagenet_c", protocol.name, provenance["checkpoint"]["sha256"], subset["sha256"], resize,
        crop_size, checkpoint_name=checkpoint_name, subset=label,
        corruptions=corruptions_label(names),
    )  # fmt: skip
    stem = result_stem(folder, measurement, usual_measurement(measurement, usual_sizes))
    loading = (batch_size, workers)
    counts = resumable_counts(model, dataset, tree, measurement, stem, context, logger, *loading)
    result = make_result(counts, tree, measurement, provenance, clean_accuracy, folder)
    report(result, stem, context, logger)
    return result


def usual_measurement(measured: Measurement, sizes: tuple[int, int] | None) -> Measurement:
    """All images and the 15 corruptions, at the network's own sizes."""
    img_size, crop = sizes or (measured.resize, measured.crop)
    resize = img_size if measured.resize else None
    return replace(
        measured, resize=resize, crop=crop, checkpoint_name="", subset="", corruptions=""
    )


def checked_tree(
    root: str,
    names: Sequence[str],
    class_names: Sequence[str] | None,
    model: nn.Module,
    side: int | None,
) -> CorruptionTree:
    """The tree with the network's labels, its images at least `side` pixels where that is given."""
    tree = read_corruptions(root, names)
    if side is not None:
        require_size(tree, side)
    return tree.with_labels_of(class_names, len(class_names or ()) or model.num_classes)


def report(
    result: ImageNetCResult, stem: Path, context: DistributedContext, logger: Logger
) -> None:
    """Write and print the result; from then on nothing is left to resume."""
    if context.is_main:
        write_files(result, stem)
        remove_journals(stem)
    logger.info(result_text(result, stem))
    context.barrier()


def resumable_counts(
    model: nn.Module,
    dataset: CorruptionBatches,
    tree: CorruptionTree,
    measurement: Measurement,
    stem: Path,
    context: DistributedContext,
    logger: Logger,
    batch_size: int,
    workers: int,
) -> Counts:
    """Every group's counts over all processes; what the journals hold is not evaluated again."""
    fingerprint = measurement.fingerprint()
    with ResumableRows(stem, fingerprint, context, read_counts) as journal:
        complete, own = finished_groups(journal.found, context)
        done = {g for g, name in enumerate(tree.names) if name in complete or name in own}
        if done:
            logger.info(f"resuming: {len(done)} of {len(tree.names)} folders were evaluated before")
        plan = GroupPlan(tree.sizes, batch_size, context.rank, context.world_size, done)
        loader = make_loader(dataset, plan, workers, context.device)
        batches = on_device(loader, context.device, next(model.parameters()).dtype)
        every = max(1, len(plan) // PROGRESS_LINES)
        batches = logger.progress(batches, len(plan), "ImageNet-C", every)
        share = share_name(context.rank, context.world_size)
        with attacking(model):  # evaluation mode, no gradients
            for group, counts in count_groups(model, batches, plan, done):
                own[tree.names[group]] = counts
                journal.add(share, {tree.names[group]: counts})
                journal.flush()
    shares = [complete, *context.gather(own)]
    return {name: add_up(s[name] for s in shares if name in s) for name in tree.names}


def count_groups(
    model: nn.Module, batches: Iterable[DeviceBatch], plan: GroupPlan, done: set[int]
) -> Iterator[tuple[int, GroupCounts]]:
    """Each group that is not done, as soon as it is.

    The counts stay on the device; reading them, once a group, is the only synchronisation.

    Raises:
        UserError: outputs that are not finite, for there any class could be called the largest.
    """
    device = next(model.parameters()).device
    counts = torch.zeros(len(plan.ends), 4, dtype=torch.int32, device=device)
    through = 0
    for number, batch in zip(plan.batches, batches, strict=True):
        with torch.no_grad():
            counts.index_add_(0, batch.indices, outcomes(model(batch.images), batch.labels))
        for group in range(through, plan.finished_with(number)):
            if group not in done:
                yield group, finite_counts(counts[group].tolist())
        through = plan.finished_with(number)
    # Groups without an image for this process, after its last one.
    yield from (
        (group, GroupCounts(0, 0, 0)) for group in range(through, len(counts)) if group not in done
    )


def outcomes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Per image 1 or 0: top-1 right, top-5 right, an image, outputs not finite. (B, 4) int32."""
    top1, top5 = correct_in_top(logits, labels, 1), correct_in_top(logits, labels, 5)
    broken = ~logits.isfinite().all(dim=1)
    return torch.stack([top1, top5, torch.ones_like(top1), broken], dim=1).int()


def finite_counts(row: list[int]) -> GroupCounts:
    """The first three counts, once the fourth has been seen to be zero."""
    *counts, broken = row
    if broken:
        raise UserError(
            f"the network's outputs are not finite on {broken} of {counts[2]} images; the"
            " checkpoint is of a training that diverged, or damaged"
        )
    return GroupCounts(*counts)
