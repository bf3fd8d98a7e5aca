"""Robust accuracy against the cost of training."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from utils.figures.style import WIDTH, literal, point_style, styled
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
    for number, point in enumerate(points):
        style, with_he = point_style(number // 2), number % 2
        cost = point.cost * (1.02 if with_he else 0.98)  # two points of one cost stay apart
        style |= {"markersize": 6, "capsize": 2.5, "label": literal(point.name)}
        style["markerfacecolor"] = style["color"] if with_he else "white"
        axes.errorbar(cost, point.robust.percent, yerr=point.robust.spread or None, **style)
    axes.set_xscale("log")
    costs = sorted({point.cost for point in points})
    axes.set_xticks(costs, [f"{cost:g}" for cost in costs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training cost (forward-backward passes over the training set, logarithmic)")
    axes.set_ylabel("robust accuracy, worst case (%)")
    axes.legend(ncols=2, title="mean and standard deviation over seeds")
    return fig
