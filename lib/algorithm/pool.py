"""Images under attack: batches, outcomes, and PGD that leaves an image alone once misclassified.

An image that has ended makes room for the next at once: the batch stays full, and the cost of an
evaluation follows the robust accuracy.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from lib.algorithm.metrics import correct_in_top
from lib.algorithm.pgd import Step

# (clean images, indices, number of the restart, (B,) or one for all) to images at a random start
Begin = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | int], torch.Tensor]
# (images, labels, clean images) to one step of PGD
Ascend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Step]
# (images, labels, the search's logits, whether this is the last iterate) to logits to judge by
Recheck = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class DeviceBatch(NamedTuple):
    """A batch on its device: images (B, 3, H, W) in [0, 1], labels and indices (B,)."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


class Outcome(NamedTuple):
    """Images whose attack has ended.

    Attributes:
        indices: (B,) int64, positions in the tree.
        robust: (B,) bool, top-1 right wherever the protocol looks.
        stages_survived: (B,) int64, of the attack's stages; PGD is one.
        robust5: (B,) bool, the same of top-5. Under `standard` the attack stops at the first
            misclassified iterate, so this is an upper bound there.
        predictions: (B,) int64, of the image that ended the attack.
        no_gradient: (B,) bool, the first step's gradient was zero in every pixel.
        adversarial: (B, 3, H, W), the image that ended the attack.
    """

    indices: torch.Tensor
    robust: torch.Tensor
    stages_survived: torch.Tensor
    robust5: torch.Tensor
    predictions: torch.Tensor
    no_gradient: torch.Tensor
    adversarial: torch.Tensor


def worst_per_image(one: Outcome, other: Outcome) -> Outcome:
    """Of two restarts, each image's worse: the first that is misclassified, else the later one."""
    keep = ~one.robust
    return Outcome(
        one.indices,
        one.robust & other.robust,
        one.stages_survived & other.stages_survived,
        one.robust5 & other.robust5,
        torch.where(keep, one.predictions, other.predictions),
        one.no_gradient,
        torch.where(keep.view(-1, 1, 1, 1), one.adversarial, other.adversarial),
    )


@dataclass(frozen=True)
class Pool:
    """Images under attack; every field has one row an image.

    Attributes:
        images: the clean ones.
        iterate: number of the iterate, counted over all restarts.
        no_gradient: the first step's gradient was zero in every pixel.
    """

    images: torch.Tensor
    adversarial: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    iterate: torch.Tensor
    no_gradient: torch.Tensor

    def select(self, rows: torch.Tensor) -> "Pool":
        """Only some rows, by their numbers."""
        return Pool(*(field[rows] for field in vars(self).values()))

    def join(self, other: "Pool | None") -> "Pool":
        """These rows and those."""
        if other is None:
            return self
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Pool(*(torch.cat(pair) for pair in pairs))


class Queue:
    """Hands out images of batches in portions of any size."""

    def __init__(self, batches: Iterable[DeviceBatch]) -> None:
        self.batches = iter(batches)
        self.held: DeviceBatch | None = None

    def take_batch(self) -> DeviceBatch | None:
        """What is left of a batch, or the next one; None for none."""
        batch, self.held = self.held, None
        return batch or next(self.batches, None)

    def take(self, wanted: int) -> DeviceBatch | None:
        """Up to `wanted` images, fewer only when no more are left; None for none."""
        parts: list[DeviceBatch] = []
        while wanted > 0:
            batch = self.take_batch()
            if batch is None:
                break
            parts.append(DeviceBatch(*(field[:wanted] for field in batch)))
            rest = DeviceBatch(*(field[wanted:] for field in batch))
            self.held = rest if len(rest.labels) else None
            wanted -= len(parts[-1].labels)
        if not parts:
            return None
        return DeviceBatch(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def attack_until_misclassified(
    batches: Iterable[DeviceBatch],
    *,
    steps: int,
    restarts: int,
    begin: Begin,
    ascend: Ascend,
    recheck: Recheck,
) -> Iterator[Outcome]:
    """Attack images that stay in a pool until misclassified, or through with all restarts.

    A step's logits judge the iterate that it starts from, so `steps` steps have `steps` + 1
    iterates to judge, the random start being the first.

    Args:
        batches: images that are classified right; as many as the first has are attacked at once.
        steps: of each restart.
        restarts: random starts of each image.
        begin, ascend, recheck: see their types.
    """
    queue = Queue(batches)
    batch = queue.take_batch()
    size = 0 if batch is None else len(batch.labels)
    pool = enter(batch, begin)
    while pool is not None and len(pool.labels):
        step = ascend(pool.adversarial, pool.labels, pool.images)
        last = pool.iterate % (steps + 1) == steps
        logits = recheck(pool.adversarial, pool.labels, step.logits, last)
        robust = correct_in_top(logits, pool.labels, 1)
        first = pool.iterate == 0
        pool = replace(
            pool,
            no_gradient=torch.where(first, is_zero(step.gradient), pool.no_gradient),
        )
        through = pool.iterate == restarts * (steps + 1) - 1
        ended, restarting, staying = sort_rows(~robust | through, last)
        if len(ended):
            yield outcome_of(pool, ended, logits[ended])
        pool = advance(pool, step.adversarial, restarting, steps, begin)
        if len(ended):
            pool = pool.select(staying)
            pool = pool.join(enter(queue.take(size - len(staying)), begin))


def enter(batch: DeviceBatch | None, begin: Begin) -> Pool | None:
    """New images at their first random start."""
    if batch is None:
        return None
    images, labels, indices = batch
    never = torch.zeros_like(labels, dtype=torch.bool)
    adversarial = begin(images, indices, 0)
    return Pool(images, adversarial, labels, indices, torch.zeros_like(labels), never)


def sort_rows(ended: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Numbers of the rows that have ended, that begin another restart, that have not ended.

    Two counts come to the CPU, the only synchronisation of a step.
    """
    order = torch.where(ended, 0, torch.where(last, 1, 2)).argsort(stable=True)
    n_ended, n_restarting = torch.stack([ended, last & ~ended]).sum(dim=1).tolist()
    return order[:n_ended], order[n_ended : n_ended + n_restarting], order[n_ended:]


def outcome_of(pool: Pool, rows: torch.Tensor, logits: torch.Tensor) -> Outcome:
    """What became of the rows that have ended, from their last logits.

    All iterates before had their label first, so top-5 over all iterates is that of the last.
    """
    ended = pool.select(rows)
    robust, robust5 = (correct_in_top(logits, ended.labels, k) for k in (1, 5))
    return Outcome(
        ended.indices,
        robust,
        robust.long(),
        robust5,
        logits.argmax(1),
        ended.no_gradient,
        ended.adversarial,
    )


def advance(
    pool: Pool, moved: torch.Tensor, restarting: torch.Tensor, steps: int, begin: Begin
) -> Pool:
    """Move every image to its next iterate or, after a restart's last one, to the next start."""
    iterate = pool.iterate + 1
    if len(restarting):
        restart = iterate[restarting] // (steps + 1)
        start = begin(pool.images[restarting], pool.indices[restarting], restart)
        moved = moved.index_copy(0, restarting, start)
    return replace(pool, adversarial=moved, iterate=iterate)


def is_zero(gradient: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) to (B,): the gradient vanishes in every pixel."""
    return gradient.flatten(1).abs().amax(dim=1) == 0
