"""An accuracy and how far it can be trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """Wilson's score interval for a binomial proportion, in [0, 1]; (0, 1) of no images.

    Wilson, E. B. (1927), JASA 22; it keeps its coverage near 0 and 1.
    """
    if n == 0:
        return 0.0, 1.0
    p, z = correct / n, Z_95
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the exact value is 0 or 1; rounding must not push it past the proportion.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == n else (centre + half) / scale
    return low, high


@dataclass(frozen=True)
class Estimate:
    """A value in percent, with its 95 % interval or its standard deviation over seeds."""

    percent: float
    interval: tuple[float, float] | None = None
    spread: float | None = None
    warned: bool = False  # by its evaluation, so figures draw it hollow

    @property
    def whiskers(self) -> tuple[float, float]:
        if self.spread is not None:
            return self.percent - self.spread, self.percent + self.spread
        return self.interval or (self.percent, self.percent)


def over_seeds(percents: Sequence[float]) -> Estimate:
    """Mean and standard deviation of the same of several seeds; one alone has no deviation."""
    return Estimate(fmean(percents), spread=stdev(percents) if len(percents) > 1 else None)


def mean_estimate(mean: float, n: int) -> Estimate:
    """A mean in [0, 1] of accuracies that are all on the same n images."""
    # Of n, not of all outcomes: wide enough however strongly those of an image are correlated.
    low, high = wilson_interval(mean * n, n)
    return Estimate(100 * mean, (100 * low, 100 * high))


@dataclass(frozen=True)
class Accuracy:
    """How many of n images are right."""

    correct: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.n:
            raise ValueError(f"{self.correct} of {self.n} images is no accuracy")

    @property
    def fraction(self) -> float:
        return self.correct / self.n if self.n else 0.0

    @property
    def percent(self) -> float:
        return 100 * self.fraction

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (Wilson), in [0, 1]."""
        return wilson_interval(self.correct, self.n)

    @property
    def estimate(self) -> Estimate:
        """The same in percent."""
        low, high = self.interval
        return Estimate(self.percent, (100 * low, 100 * high))
