"""PGD on a network under a protocol: from batches to what became of each image.

An image that has ended makes room in its pool for the next at once, so that the cost of an
evaluation follows the robust accuracy.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from lib.algorithm.losses import ATTACK_LOSS
from lib.algorithm.metrics import (
    correct_in_top,
    full_precision,
    is_full_precision,
    precision_context,
)
from lib.algorithm.norms import NORMS
from lib.algorithm.pgd import Logits, Search, ascent_step, pgd, random_start
from lib.algorithm.protocols import PGDSpec, ThreatModel

MOST_THREADS = 8  # that draw random starts
RECHECK_MULTIPLE = 32  # images; kernels are chosen, and memory is kept, for every batch size


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


def judge(
    indices: torch.Tensor,
    labels: torch.Tensor,
    logits: torch.Tensor,
    no_gradient: torch.Tensor,
    adversarial: torch.Tensor,
) -> Outcome:
    """What became of images, by the logits of those that ended their attack."""
    robust, robust5 = (correct_in_top(logits, labels, k) for k in (1, 5))
    predictions = logits.argmax(1)
    return Outcome(indices, robust, robust.long(), robust5, predictions, no_gradient, adversarial)


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

    def join(self, other: "Pool") -> "Pool":
        """These rows and those."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Pool(*(torch.cat(pair) for pair in pairs))


class Queue:
    """Hands out images of batches in portions of any size."""

    def __init__(self, batches: Iterator[DeviceBatch]) -> None:
        self.batches = batches
        self.held: DeviceBatch | None = None  # what is left of a batch

    def take(self, wanted: int) -> DeviceBatch | None:
        """Up to `wanted` images, fewer only when no more are left; None for none."""
        parts: list[DeviceBatch] = []
        while wanted > 0:
            batch = self.held or next(self.batches, None)
            if batch is None:
                break
            parts.append(DeviceBatch(*(field[:wanted] for field in batch)))
            rest = DeviceBatch(*(field[wanted:] for field in batch))
            self.held = rest if len(rest.labels) else None
            wanted -= len(parts[-1].labels)
        if not parts:
            return None
        return DeviceBatch(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def sort_rows(ended: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Numbers of the rows that have ended, that begin another restart, that have not ended.

    Two counts come to the CPU, the only synchronisation of a step.
    """
    order = torch.where(ended, 0, torch.where(last, 1, 2)).argsort(stable=True)
    n_ended, n_restarting = torch.stack([ended, last & ~ended]).sum(dim=1).tolist()
    return order[:n_ended], order[n_ended : n_ended + n_restarting], order[n_ended:]


def is_zero(gradient: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) to (B,): the gradient vanishes in every pixel."""
    return gradient.flatten(1).abs().amax(dim=1) == 0


class RandomStarts:
    """`random_start` of many images, drawn by threads while the device works on those before.

    Args:
        search: ball and norm.
        seed: of the evaluation.
        number_of: an image's number by its index, that its start is drawn by.
    """

    def __init__(self, search: Search, seed: int, number_of: Callable[[int], int] = int) -> None:
        self.search, self.seed, self.number_of = search, seed, number_of
        self.threads = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))
        self.drawn: dict[tuple[int, int], Future[torch.Tensor]] = {}

    def drawn_ahead(self, batches: Iterable[DeviceBatch]) -> Iterator[DeviceBatch]:
        """Pass batches on, each once the first starts of the next one are being drawn."""
        held: DeviceBatch | None = None
        for batch in batches:
            shape = batch.images.shape[1:]
            for index in batch.indices.tolist():
                self.drawn[index, 0] = self.draw(index, 0, shape)
            if held is not None:
                yield held
            held = batch
        if held is not None:
            yield held

    def draw(self, index: int, restart: int, shape: torch.Size) -> Future[torch.Tensor]:
        """Let a thread draw one start."""
        eps, norm = self.search.eps, self.search.norm
        image = self.number_of(index)
        return self.threads.submit(random_start, image, shape, eps, self.seed, restart, norm)

    def __call__(
        self, images: torch.Tensor, indices: torch.Tensor, restart: torch.Tensor | int
    ) -> torch.Tensor:
        """Points of the ball around 0, (B, 3, H, W), on the images' device.

        Args:
            images: (B, 3, H, W).
            indices: (B,).
            restart: its number, one for each image or one for all.
        """
        numbers = torch.zeros_like(indices) + restart
        starts = []
        for index, number in torch.stack([indices, numbers], dim=1).tolist():
            ahead = self.drawn.pop((index, number), None)
            starts.append(ahead or self.draw(index, number, images.shape[1:]))
        noise = torch.empty(images.shape, pin_memory=images.is_cuda)
        torch.stack([start.result() for start in starts], out=noise)
        return noise.to(images, non_blocking=True, memory_format=torch.preserve_format)


class PGDAttack:
    """PGD on a network, under a protocol; to be used within `frozen_eval(model)`.

    Args:
        model: `models.resnet.ResNet`, or any module that maps [0, 1] pixels to logits.
        spec: steps, step size, loss, restarts, scale.
        threat: ball, protocol, seed, precision.
        outputs: the raw outputs of what is attacked compiled, or None.
        surrogate: the network that is attacked, where it is not `model`, which judges.
        number_of: see `RandomStarts`; a tree's `image_number`, for the same starts in every subset.
    """

    chunk: int | None = None

    def __init__(
        self,
        model: nn.Module,
        spec: PGDSpec,
        threat: ThreatModel,
        outputs: Logits | None = None,
        surrogate: nn.Module | None = None,
        number_of: Callable[[int], int] = int,
    ) -> None:
        self.model, self.spec, self.threat = model, spec, threat
        self.warnings: set[str] = set()
        self.passes: Counter[str] = Counter()  # images, `forward` and `backward`
        self.search = Search(
            spec.steps, spec.step_size, threat.eps, ATTACK_LOSS[spec.loss], NORMS[threat.norm]
        )
        attacked = model if surrogate is None else surrogate
        own_scale = getattr(attacked, "scale", 1.0)
        scale = threat.protocol.search_scale(spec, own_scale)
        # Calling the module keeps hooks and foreign networks working where s is its own.
        own = scale == own_scale and outputs is None
        raw: Any = attacked if own else outputs or getattr(attacked, "outputs", attacked)
        self.raw: Logits = raw
        self.factor = 1.0 if own else scale
        self.compiled, self.transfers = outputs is not None, surrogate is not None
        self.starts = RandomStarts(self.search, threat.seed, number_of)

    def run(self, batches: Iterable[DeviceBatch]) -> Iterator[Outcome]:
        """Attack images, in any order of completion.

        Args:
            batches: the images; where the protocol judges every iterate, only those that are
                classified right, and the first batch says how many are attacked at once.
        """
        ahead = self.starts.drawn_ahead(batches)
        if self.threat.protocol.every_iterate:
            yield from self.attack_until_misclassified(ahead)
        else:
            yield from (self.attack_final_iterate(*batch) for batch in ahead)

    def search_logits(self, images: torch.Tensor) -> torch.Tensor:
        """What the search ascends a loss of: logits at the attack's scale and precision."""
        self.passes.update(forward=len(images), backward=len(images))
        with precision_context(images.device, self.threat.precision):
            logits = self.raw(images)
        if self.threat.precision != "fp32":
            logits = logits.float()
        return logits * self.factor if self.factor != 1.0 else logits

    @torch.no_grad()
    def predict_full_precision(self, images: torch.Tensor) -> torch.Tensor:
        """The network's logits in its own precision."""
        self.passes["forward"] += len(images)
        with full_precision():
            logits: torch.Tensor = self.model(images)
        return logits

    def attack_final_iterate(
        self, images: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor
    ) -> Outcome:
        """Attack a batch and judge the last iterate of every restart."""
        worst: Outcome | None = None
        for restart in range(self.spec.restarts):
            start = self.starts(images, indices, restart)
            around_start = self.threat.protocol.ball_around_start
            iterates = pgd(self.search_logits, images, labels, start, self.search, around_start)
            adversarial, gradient, _ = next(iterates)
            for adversarial, _, _ in iterates:
                pass
            logits = self.predict_full_precision(adversarial)
            outcome = judge(indices, labels, logits, is_zero(gradient), adversarial)
            worst = outcome if worst is None else worst_per_image(worst, outcome)
        assert worst is not None
        return worst

    def attack_until_misclassified(self, batches: Iterator[DeviceBatch]) -> Iterator[Outcome]:
        """Attack images that stay in a pool until misclassified, or through with all restarts.

        A step's logits judge the iterate that it starts from, so `steps` steps have `steps` + 1
        iterates to judge, the random start being the first.
        """
        first = next(batches, None)
        if first is None:
            return
        queue, size, per_restart = Queue(batches), len(first.labels), self.spec.steps + 1
        pool = self.enter(first)
        while len(pool.labels):
            images, adversarial, labels = pool.images, pool.adversarial, pool.labels
            step = ascent_step(self.search_logits, adversarial, labels, images, self.search)
            last = pool.iterate % per_restart == self.spec.steps
            logits = self.recheck(adversarial, labels, step.logits, last)
            robust = correct_in_top(logits, labels, 1)
            no_gradient = torch.where(pool.iterate == 0, is_zero(step.gradient), pool.no_gradient)
            through = pool.iterate == self.spec.restarts * per_restart - 1
            ended, restarting, staying = sort_rows(~robust | through, last)
            if len(ended):
                # All iterates before had their label first, so top-5 over all is that of the last.
                yield judge(
                    pool.indices[ended],
                    labels[ended],
                    logits[ended],
                    no_gradient[ended],
                    adversarial[ended],
                )
            iterate, moved = pool.iterate + 1, step.adversarial
            if len(restarting):
                numbers = iterate[restarting] // per_restart
                start = self.begin(images[restarting], pool.indices[restarting], numbers)
                moved.index_copy_(0, restarting, start)  # a new tensor would be no channels_last
            pool = replace(pool, adversarial=moved, iterate=iterate, no_gradient=no_gradient)
            if len(ended):
                pool = pool.select(staying)
                new = queue.take(size - len(staying))
                pool = pool if new is None else pool.join(self.enter(new))

    def enter(self, batch: DeviceBatch) -> Pool:
        """New images at their first random start."""
        images, labels, indices = batch
        never = torch.zeros_like(labels, dtype=torch.bool)
        start = self.begin(images, indices, 0)
        return Pool(images, start, labels, indices, torch.zeros_like(labels), never)

    def begin(
        self, images: torch.Tensor, indices: torch.Tensor, restart: torch.Tensor | int
    ) -> torch.Tensor:
        """Images at a random start of the ball around them."""
        moved = images + self.starts(images, indices, restart)
        return self.search.norm.project(moved, images, self.search.eps)

    def recheck(
        self,
        adversarial: torch.Tensor,
        labels: torch.Tensor,
        logits: torch.Tensor,
        last: torch.Tensor,
    ) -> torch.Tensor:
        """The search's logits, with those that decide something replaced in full precision.

        An iterate that another arithmetic takes for right is believed until the last one, which
        can only weaken the attack; one that seems to be misclassified is looked at again.
        """
        if self.transfers:
            return self.predict_full_precision(adversarial).to(logits.dtype)
        if is_full_precision(logits.device, self.threat.precision) and not self.compiled:
            return logits
        decisive = (last | ~correct_in_top(logits, labels, 1)).nonzero().squeeze(1)
        if not len(decisive):
            return logits
        padding = decisive[:1].expand(-len(decisive) % RECHECK_MULTIPLE)
        full = self.predict_full_precision(adversarial[torch.cat([decisive, padding])])
        return logits.index_copy(0, decisive, full[: len(decisive)].to(logits.dtype))
