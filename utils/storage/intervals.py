"""An accuracy and how far it can be trusted."""

from __future__ import annotations

import math
from typing import Any

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson_interval(correct: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval for a binomial proportion, as fractions in [0, 1].

    Wilson, E. B. (1927), JASA 22. Unlike the normal approximation it stays inside [0, 1] and
    keeps its coverage near 0 and 1. With n = 0 nothing is known: (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    p = correct / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the exact value is 0 or 1; rounding must not push it past the proportion.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == n else (centre + half) / scale
    return low, high


def accuracy_entry(correct: int, n: int) -> dict[str, Any]:
    """What result files hold of one accuracy: the counts, the fraction, its 95 % interval."""
    accuracy = correct / n if n else 0.0
    interval = list(wilson_interval(correct, n))
    return {"correct": int(correct), "n": int(n), "accuracy": accuracy, "interval95": interval}
