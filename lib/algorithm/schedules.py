"""Learning rates, as functions of the time in epochs."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass


def step_lr(epoch: int, initial_lr: float, n_repeats: int) -> float:
    """`initial_lr`, divided by 10 every ceil(30 / m) passes over the data (arXiv:1904.12843).

    Args:
        epoch: pass over the data, counted from 0.
        initial_lr: learning rate of the first passes.
        n_repeats: replays m of each minibatch, each of which counts as an epoch.
    """
    return initial_lr * 0.1 ** (epoch // math.ceil(30 / n_repeats))


def linear_lr(time: float, epochs: Sequence[float], values: Sequence[float]) -> float:
    """Piecewise linear through (epochs, values), constant outside (arXiv:2001.03994).

    Args:
        time: in epochs from the start of the training.
        epochs: in ascending order.
        values: learning rate at each of `epochs`.
    """
    if time <= epochs[0]:
        return values[0]
    if time >= epochs[-1]:
        return values[-1]
    right = bisect.bisect_right(epochs, time)
    (x0, x1), (y0, y1) = epochs[right - 1 : right + 1], values[right - 1 : right + 1]
    return y0 + (y1 - y0) / (x1 - x0) * (time - x0)


def cosine_lr(time: float, initial_lr: float, epochs: float, warmup_epochs: float = 0) -> float:
    """Up from 0 to `initial_lr` in a line, then down to 0 in half a cosine (arXiv:1608.03983).

    Args:
        time: in epochs from the start of the training.
        initial_lr: the largest learning rate.
        epochs: of the whole training.
        warmup_epochs: of the way up.
    """
    if time < warmup_epochs:
        return initial_lr * time / warmup_epochs
    share = (time - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    return initial_lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a training: `schedule(epoch, share of the epoch)`.

    Attributes:
        kind: step, linear or cosine.
        lr: the initial rate of step, the largest of cosine.
        n_repeats: replays m that count as epochs.
        passes: over the data, in all.
        epochs: of `linear_lr`; a pass is `n_repeats` of them, here and below.
        values: of `linear_lr`.
        warmup_epochs: of `cosine_lr`.
    """

    kind: str
    lr: float
    n_repeats: int = 1
    passes: int = 1
    epochs: Sequence[float] = ()
    values: Sequence[float] = ()
    warmup_epochs: float = 0.0

    def __call__(self, epoch: int, share: float) -> float:
        """The rate at `share` of a pass, counted from 0; fast's replays continue beyond 1."""
        time = (epoch + share) * self.n_repeats
        if self.kind == "linear":
            return linear_lr(time, self.epochs, self.values)
        if self.kind == "cosine":
            return cosine_lr(time, self.lr, self.passes * self.n_repeats, self.warmup_epochs)
        return step_lr(epoch, self.lr, self.n_repeats)
