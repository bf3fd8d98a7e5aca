"""The figure of a comparison: a point per measure and run, with its interval."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.figures.style import WIDTH, footnote, handles_of, literal, marker_style, styled
from utils.storage.accuracy import Estimate

STEP = 0.15  # inches between two runs of a measure
GAP = 0.16  # inches between two measures
TITLE_WIDTH = 30  # characters


@dataclass(frozen=True)
class Panel:
    """Measures on one axis.

    Attributes:
        title: above it.
        axis: what is measured, with its unit.
        measures: (title, {run: value}) from top to bottom.
        is_share: in percent of images, so at most 100.
    """

    title: str
    axis: str
    measures: Sequence[tuple[str, Mapping[str, Estimate]]]
    is_share: bool = True


@styled
def comparison(panels: Sequence[Panel]) -> Figure:
    """Measures below each other, the runs in each by colour and marker."""
    names = list(dict.fromkeys(n for p in panels for _, dots in p.measures for n in dots))
    heights = [sum(room(dots) for _, dots in p.measures) for p in panels]
    around = 0.55 * len(panels) + 0.17 * len(names) + 0.3  # axes, legend, note
    fig = Figure(figsize=(WIDTH, sum(heights) + around), layout="constrained")
    all_axes = fig.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        draw_panel(axes, panel, names)
    handles = handles_of(names, [point_style(index) for index in range(len(names))])
    fig.legend(handles=handles, loc="outside upper center", ncols=1, handletextpad=0.3)
    footnote(fig, whisker_note(panels))
    return fig


def room(dots: Mapping[str, Estimate]) -> float:
    """Inches that a measure takes."""
    return STEP * max(len(dots), 1.6) + GAP


def draw_panel(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    """One measure below the other, each of its runs on a line of its own."""
    ticks, top, reach = [], 0.0, [1.0]
    for index, (_, dots) in enumerate(panel.measures):
        if index % 2:
            axes.axhspan(top, top + room(dots), color="#F3F3F3", linewidth=0, zorder=0)
        ticks.append(top + room(dots) / 2)
        lines = [name for name in names if name in dots]
        for line, name in enumerate(lines):
            y = ticks[-1] + STEP * (line - (len(lines) - 1) / 2)
            low, high = dots[name].whiskers
            style = point_style(names.index(name))
            axes.hlines(y, low, high, color=style["color"], linewidth=1.2)
            axes.plot(dots[name].percent, y, **style)
            text = f" {dots[name].percent:.1f}"
            axes.annotate(text, (high, y), (3, 0), textcoords="offset points", va="center", size=7)
            reach.append(high)
        top += room(dots)
    titles = [textwrap.fill(literal(title), TITLE_WIDTH) for title, _ in panel.measures]
    axes.set_yticks(ticks, titles)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(top, 0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlim(0, min(1.14 * max(reach), 112) if panel.is_share else 1.14 * max(reach))
    axes.set_xlabel(panel.axis)
    axes.set_title(literal(panel.title), fontsize=9, loc="left")


def whisker_note(panels: Sequence[Panel]) -> str:
    """What the whiskers are."""
    dots = [dot for panel in panels for _, column in panel.measures for dot in column.values()]
    kinds = []
    if any(dot.spread is None and dot.interval for dot in dots):
        kinds.append("95 % Wilson intervals over the images")
    if any(dot.spread is not None for dot in dots):
        kinds.append("± one standard deviation over the seeds")
    return f"Whiskers: {'; '.join(kinds)}." if kinds else ""


def point_style(index: int) -> dict[str, Any]:
    """Of the run with this index."""
    return {**marker_style(index), "linestyle": "none"}
