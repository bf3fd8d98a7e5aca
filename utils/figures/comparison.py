"""The figure of a comparison: bars per measure and run, with 95 % intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from utils.figures.style import COLOURS, HATCHES, percent_axis, styled
from utils.storage.comparison import Column, Table, header

GROUP = 0.84  # width of a group of bars, where 1 is the distance between groups
INCHES = (5.0, 16.0)  # narrowest and widest figure


@styled
def comparison(table: Table) -> Figure:
    """Accuracies side by side; mCE, where there, in a panel of its own: there less is better."""
    accuracies = [column for column in table.columns if column.measure != "mCE"]
    errors = [column for column in table.columns if column.measure == "mCE"]
    panels = [columns for columns in (accuracies, errors) if columns]
    widths = [len(columns) * max(len(table.names) * 0.42, 0.9) + 0.6 for columns in panels]
    width = min(max(sum(widths), INCHES[0]), INCHES[1])
    fig = Figure(figsize=(width, 3.6), layout="constrained")
    all_axes = fig.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
    for axes, columns in zip(all_axes, panels, strict=True):
        tops = draw_bars(axes, table, columns)
        percent_axis(axes, "top-1 accuracy (%)", tops)
        if columns is errors:  # not a share: more than 100 % is worse than AlexNet
            axes.set_ylabel("mCE (%), less is better")
            axes.set_ylim(0, 1.12 * max(tops))
    handles = [Patch(label=name, **look(table, name)) for name in table.names]
    fig.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 4))
    return fig


def draw_bars(axes: Axes, table: Table, columns: Sequence[Column]) -> list[float]:
    """One group of bars per column, one bar per run that has it. Returns where they reach to."""
    width = GROUP / len(table.names)
    tops = []
    for spot, column in enumerate(columns):
        present = [name for name in table.names if (name, column) in table.cells]
        for place, name in enumerate(present):
            value = table.cells[name, column]
            x = spot + (place - (len(present) - 1) / 2) * width
            low, high = value.interval or (value.percent, value.percent)
            axes.bar(x, value.percent, width * 0.94, **look(table, name))
            axes.vlines(x, low, high, color="#222222", linewidth=1.1)
            axes.text(x, high + 0.8, f"{value.percent:.1f}", ha="center", va="bottom", size=7)
            tops.append(high)
    titles = [textwrap.fill(header(column, table.columns), 12) for column in columns]
    axes.set_xticks(range(len(columns)), titles)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.grid(visible=False, axis="x")
    return tops


def look(table: Table, name: str) -> dict[str, Any]:
    """Colour and hatching of a run, which tell it apart in print without colour too."""
    place = table.names.index(name)
    return {
        "facecolor": COLOURS[place % len(COLOURS)],
        "hatch": HATCHES[place % len(HATCHES)],
        "edgecolor": "white",
        "linewidth": 0.5,
    }
