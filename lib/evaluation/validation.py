"""Clean images, one row an image, and what training wants to know of a model in between."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from lib.algorithm.losses import ce_loss
from lib.algorithm.metrics import averages, correct_in_top, full_precision
from lib.algorithm.pgd import Logits, frozen_eval
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.pool import DeviceBatch
from lib.algorithm.protocols import PGDSpec, ThreatModel
from lib.data.datasets import ImageBatches, eval_transform
from lib.data.folders import ImageTree
from lib.data.loader import WhileWaiting, make_loader
from lib.data.sampler import EvaluationSampler, share_in_batches
from lib.data.subsets import evenly_spread
from lib.data.to_device import on_device
from utils.distributed.context import DistributedContext

WithProgress = Callable[[Iterable[DeviceBatch], int], Iterable[DeviceBatch]]  # (batches, how many)


class CleanRow(NamedTuple):
    """One clean image: predicted output, top-1 and top-5 correct, cross-entropy."""

    prediction: int
    correct: bool
    correct5: bool
    loss: float


@dataclass
class EvaluationData:
    """How the images of a tree are read for evaluation."""

    tree: ImageTree  # labels index the network's outputs
    img_size: int | None  # shorter side before the crop, pixels; None crops alone
    crop_size: int  # side of the network's input, pixels
    batch_size: int  # images in a batch of one process
    workers: int  # of one process, which read
    context: DistributedContext  # the processes that share the images out
    while_waiting: WhileWaiting = lambda: False  # see `lib.data.loader.Loader.batches`
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        transform = eval_transform(self.img_size, self.crop_size, self.interpolation)
        self.images = ImageBatches([self.tree], transform, self.crop_size)

    def batches(self, positions: Iterable[int]) -> Iterator[DeviceBatch]:
        """This process's share of some positions, each image once."""
        yield from self.read(self.shares(positions))

    def shares(
        self, positions: Iterable[int], done: Container[int] = (), chunk: int | None = None
    ) -> list[Sequence[int]]:
        """This process's batches of some positions, without those done before.

        Args:
            chunk: cut batches of this many from the list of all positions, the same for every
                number of processes, and leave one out only when all of it is done; None cuts this
                process's share of what is not done into batches of `batch_size`.
        """
        rank, world_size = self.context.rank, self.context.world_size
        if chunk is not None:
            chunks = share_in_batches(list(positions), chunk)
            return [c for c in chunks if any(i not in done for i in c)][rank::world_size]
        rest = [i for i in positions if i not in done]
        return share_in_batches(rest, self.batch_size, rank, world_size)

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[DeviceBatch]:
        """Batches of positions, on the device."""
        if batches:
            keys = [(0, positions) for positions in batches]
            waiting = self.while_waiting
            yield from read_batches(self.images, keys, self.workers, self.context, waiting)


def read_batches(
    images: ImageBatches,
    batches: Sequence[tuple[int, Sequence[int]]],
    workers: int,
    context: DistributedContext,
    while_waiting: WhileWaiting = lambda: False,
) -> Iterator[DeviceBatch]:
    """Batches of (number of the tree, positions in it), on the device."""
    sampler, workers = EvaluationSampler(batches), min(workers, len(batches))
    loader = make_loader(images, sampler, workers, context.device, context.local_processes)
    return on_device(loader, context.device, while_waiting=while_waiting)


@torch.no_grad()
def clean_rows(model: nn.Module, batches: Iterable[DeviceBatch]) -> Iterator[dict[int, CleanRow]]:
    """Classify clean images; one dictionary by position for each batch."""
    with frozen_eval(model):
        for images, labels, indices in batches:
            with full_precision():
                logits = model(images)
            columns = (
                logits.argmax(1),
                correct_in_top(logits, labels, 1),
                correct_in_top(logits, labels, 5),
                ce_loss(logits, labels),
            )
            rows = zip(*(column.tolist() for column in columns), strict=True)
            yield {i: CleanRow(*row) for i, row in zip(indices.tolist(), rows, strict=True)}


def validate(
    model: nn.Module, data: EvaluationData, progress: WithProgress = lambda batches, _: batches
) -> dict[str, float]:
    """Clean loss, top-1 and top-5 in percent, number of classes predicted, over all processes."""
    batches = data.shares(range(len(data.tree.files)))
    rows: list[CleanRow] = []
    for part in clean_rows(model, progress(data.read(batches), len(batches))):
        rows += part.values()
    columns = ([row[k] for row in rows] for k in (3, 1, 2))
    predicted = set().union(*data.context.gather({row.prediction for row in rows}))
    means = averages(data.context.sum([*map(sum, columns), len(rows)]))
    return {**means, "predicted": len(predicted)}


def validate_pgd(
    model: nn.Module,
    data: EvaluationData,
    spec: PGDSpec,
    threat: ThreatModel,
    examples: int,
    outputs: Logits | None = None,
) -> float:
    """Robust top-1 in percent on evenly spread images, over all processes.

    Args:
        outputs: of the model, compiled, for the search.
    """
    positions = evenly_spread(len(data.tree.files), examples)
    targets = set(positions)
    if threat.protocol.every_iterate:
        rows: dict[int, CleanRow] = {}
        for part in clean_rows(model, data.batches(positions)):
            rows.update(part)
        shares = data.context.gather(rows)
        targets = {i for part in shares for i, row in part.items() if row.correct}
    attack = PGDAttack(model, spec, threat, outputs, number_of=data.tree.image_number)
    robust = 0
    with frozen_eval(model):
        for outcome in attack.run(data.batches(sorted(targets))):
            robust += int(outcome.robust.sum())
    return 100 * sum(data.context.gather(robust)) / len(positions)


def adversarial_examples(
    model: nn.Module, data: EvaluationData, spec: PGDSpec, threat: ThreatModel, count: int = 16
) -> torch.Tensor:
    """The last iterates of PGD on evenly spread images of this process, for people to look at."""
    positions = evenly_spread(len(data.tree.files), count * data.context.world_size)
    batch = next(data.batches(positions))
    with frozen_eval(model):
        attack = PGDAttack(model, spec, threat, number_of=data.tree.image_number)
        return attack.attack_final_iterate(*batch).adversarial
