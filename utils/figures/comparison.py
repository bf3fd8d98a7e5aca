"""The figure of a comparison: a point per measure and run, with its interval."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures import style
from utils.storage.results import Estimate

ACCURACY, ERROR = "top-1 accuracy (%)", "mCE (%), less is better"
DIFFERENCE = "difference of top-1 accuracy (points)"
ROW = 0.15  # inches from one run of a measure to the next
TITLE_WIDTH = 30  # characters


@dataclass(frozen=True)
class Panel:
    """Measures on one axis."""

    title: str
    axis: str  # ACCURACY, ERROR or DIFFERENCE
    measures: Sequence[tuple[str, Mapping[str, Estimate]]]  # title and values by run, from the top


@style.applied
def comparison(panels: Sequence[Panel]) -> Figure:
    """Measures below each other, the runs in each by colour and marker."""
    names = list(dict.fromkeys(n for p in panels for _, values in p.measures for n in values))
    looks = {name: style.point(index) for index, name in enumerate(names)}
    heights = [sum(rows_of(values) for _, values in p.measures) for p in panels]
    around = 0.55 * len(panels) + 0.17 * len(names) + 0.3  # axes, legend, note
    fig = Figure(figsize=(style.WIDTH, ROW * sum(heights) + around), layout="constrained")
    all_axes = fig.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        draw_panel(axes, panel, looks)
    estimates = [e for p in panels for _, values in p.measures for e in values.values()]
    handles = style.legend_handles(looks, any(e.warned for e in estimates))
    fig.legend(handles=handles, loc="outside upper center", handletextpad=0.3)
    style.footnote(fig, whisker_note(estimates, any(panel.axis == DIFFERENCE for panel in panels)))
    return fig


def rows_of(values: Mapping[str, Estimate]) -> float:
    """Rows that a measure takes, its title of two lines and the gap to the next included."""
    return max(len(values), 1.6) + 1


def draw_panel(axes: Axes, panel: Panel, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """One measure below the other, each of its runs on a row of its own."""
    middles, top, left, right = [], 0.0, 0.0, 1.0
    for index, (_, values) in enumerate(panel.measures):
        bottom = top + rows_of(values)
        if index % 2:
            axes.axhspan(top, bottom, color="#F3F3F3", linewidth=0, zorder=0)
        middles.append((top + bottom) / 2)
        for row, name in enumerate(name for name in looks if name in values):
            y = middles[-1] + row - (len(values) - 1) / 2
            percent, spread = values[name].percent, values[name].spread
            low, high = values[name].interval or (percent, percent)
            colour = looks[name]["color"]
            axes.hlines(y, low, high, color=colour, linewidth=0.9)
            if spread is not None:
                ends = percent - spread, percent + spread
                axes.hlines(y, *ends, color=colour, linewidth=2.8, alpha=0.5)
                low, high = min(low, ends[0]), max(high, ends[1])
            axes.plot(percent, y, **style.marked(looks[name], values[name].warned))
            text = f" {percent:+.1f}" if panel.axis == DIFFERENCE else f" {percent:.1f}"
            axes.annotate(text, (high, y), (3, 0), textcoords="offset points", va="center", size=7)
            left, right = min(left, low), max(right, high)
        top = bottom
    titles = [textwrap.fill(style.literal(title), TITLE_WIDTH) for title, _ in panel.measures]
    axes.set_yticks(middles, titles)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(top, 0)
    if panel.axis == DIFFERENCE:
        axes.axvline(0, color=style.GREY, linewidth=0.8)
        axes.set_xlim(left - 0.05 * (right - left), right + 0.14 * (right - left))
    else:
        axes.set_xlim(0, min(1.14 * right, 112) if panel.axis == ACCURACY else 1.14 * right)
    axes.set_xlabel(panel.axis)
    axes.set_title(style.literal(panel.title), loc="left")


def whisker_note(values: Sequence[Estimate], of_differences: bool) -> str:
    """What the whiskers are."""
    parts = []
    kind, seeds = ("bootstrap", "seed pairs") if of_differences else ("Wilson", "the seeds")
    if any(value.interval for value in values):
        parts.append(f"Whiskers: 95 % {kind} intervals over the images.")
    if any(value.spread is not None for value in values):
        parts.append(f"Thick bars: ± one standard deviation over {seeds}.")
    return " ".join(parts)
