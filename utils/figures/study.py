"""Robust accuracy against the cost of training."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from utils.figures.style import (
    WIDTH,
    footnote,
    legend_handles,
    literal,
    marked,
    point_style,
    styled,
)
from utils.storage.accuracy import Estimate


@styled
def robustness_against_cost(trainings: Mapping[str, tuple[float, Estimate]], over: str) -> Figure:
    """Cost and robust accuracy over seeds of each training, which its twin with HE follows.

    Of a pair that costs the same, one lies to the left and one to the right of its cost.
    """
    fig = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = fig.subplots()
    for number, (name, (cost, robust)) in enumerate(trainings.items()):
        style, with_he = point_style(number // 2), number % 2
        style |= {"markersize": 6, "capsize": 2.5, "label": literal(name)}
        style = marked(style, robust.warned) | {"marker": "s" if with_he else "o"}
        x = cost * (1.02 if with_he else 0.98)  # two points of one cost stay apart
        axes.errorbar(x, robust.percent, yerr=robust.spread or None, **style)
    axes.set_xscale("log")
    costs = sorted({cost for cost, _ in trainings.values()})
    axes.set_xticks(costs, [f"{cost:g}" for cost in costs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training cost (forward-backward passes over the training set, logarithmic)")
    axes.set_ylabel(f"robust accuracy (%)\n{over}")
    estimates = [robust for _, robust in trainings.values()]
    handles = axes.get_legend_handles_labels()[0]
    handles += legend_handles({}, any(robust.warned for robust in estimates))
    axes.legend(handles=handles, ncols=2)
    note = "Two trainings of one cost are drawn beside it."
    if any(robust.spread is not None for robust in estimates):
        note += " Bars: ± one standard deviation over the seeds (n - 1)."
    footnote(fig, note)
    return fig
