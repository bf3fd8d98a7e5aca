"""Epoch arithmetic of free adversarial training: m replays make one pass worth m epochs."""

from __future__ import annotations

import math


def lr_at(epoch: int, initial_lr: float, n_repeats: int) -> float:
    """The learning rate of a pass: `initial_lr`, divided by 10 every ceil(30 / m) passes.

    Args:
        epoch: pass over the data, counted from 0.
        initial_lr: learning rate of the first passes.
        n_repeats: replays m of each minibatch.
    """
    return initial_lr * 0.1 ** (epoch // math.ceil(30 / n_repeats))
