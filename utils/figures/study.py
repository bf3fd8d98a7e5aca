"""Robust accuracy against the cost of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from utils.figures.style import WIDTH, literal, marker_style, styled
from utils.storage.accuracy import Estimate


@dataclass(frozen=True)
class Point:
    """One training over seeds.

    Attributes:
        name: in the legend; a training and the same with HE follow each other.
        cost: forward-backward passes over the training set.
        robust: accuracy over seeds.
    """

    name: str
    cost: float
    robust: Estimate


@styled
def robustness_against_cost(points: Sequence[Point]) -> Figure:
    """A point for each training, on a logarithmic axis of costs."""
    fig = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = fig.subplots()
    costs = sorted({point.cost for point in points})
    for number, point in enumerate(points):
        style, filled = marker_style(number // 2), number % 2
        shift = 1.02 if filled else 0.98  # two points of one cost stay apart
        axes.errorbar(
            point.cost * shift,
            point.robust.percent,
            yerr=point.robust.spread or None,
            **style,
            markersize=6,
            markerfacecolor=style["color"] if filled else "white",
            linestyle="none",
            capsize=2.5,
            label=literal(point.name),
        )
    axes.set_xscale("log")
    axes.set_xticks(costs, [f"{cost:g}" for cost in costs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training cost (forward-backward passes over the training set, logarithmic)")
    axes.set_ylabel("robust accuracy, worst case (%)")
    axes.legend(ncols=2, title="mean and standard deviation over seeds")
    return fig
