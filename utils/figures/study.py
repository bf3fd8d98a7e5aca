"""Robust accuracy against the cost of training."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from utils.figures.style import WIDTH, literal, point_style, styled
from utils.storage.accuracy import Estimate


@styled
def robustness_against_cost(trainings: Mapping[str, tuple[float, Estimate]]) -> Figure:
    """Cost and robust accuracy over seeds of each training, which its twin with HE follows."""
    fig = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = fig.subplots()
    for number, (name, (cost, robust)) in enumerate(trainings.items()):
        style, with_he = point_style(number // 2), number % 2
        style |= {"markersize": 6, "capsize": 2.5, "label": literal(name)}
        style["markerfacecolor"] = style["color"] if with_he else "white"
        x = cost * (1.02 if with_he else 0.98)  # two points of one cost stay apart
        axes.errorbar(x, robust.percent, yerr=robust.spread or None, **style)
    axes.set_xscale("log")
    costs = sorted({cost for cost, _ in trainings.values()})
    axes.set_xticks(costs, [f"{cost:g}" for cost in costs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training cost (forward-backward passes over the training set, logarithmic)")
    axes.set_ylabel("robust accuracy, worst case (%)")
    axes.legend(ncols=2, title="mean and standard deviation over seeds")
    return fig
