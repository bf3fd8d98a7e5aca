"""The figure of ImageNet-C results: curves over the severities, bars per corruption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.figures.style import COLOURS, HATCHES, LINES, MARKERS, percent_axis, styled

Result = Mapping[str, Any]  # content of an imagenet_c JSON
GROUPS = ("noise", "blur", "weather", "digital", "extra")
MEAN = "mean of the 15"
BARS_WIDTH = 0.82  # of all bars at one place, where 1 is the distance between places


@styled
def imagenet_c(results: Mapping[str, Result], title: str = "") -> Figure:
    """Accuracy against severity per group of corruptions, and bars per corruption below.

    With one result the curves are its corruptions; with more, each result's mean over the group.
    Bars are means over the five severities; the last is the mean over the 15, where there is one.

    Args:
        results: {label: content of an imagenet_c JSON}. A corruption that only some results hold
            has a bar where it is.
        title: above the figure.
    """
    present = {
        name: entry["group"]
        for result in results.values()
        for name, entry in result["corruptions"].items()
    }
    groups = [group for group in GROUPS if group in present.values()]
    single = len(results) == 1
    fig = Figure(figsize=(9, 6.3 if single else 5.8), layout="constrained")
    above, below = fig.subfigures(2, 1, height_ratios=(1.15 if single else 1, 1.1))
    panels = np.atleast_1d(above.subplots(1, len(groups), sharey=True))
    for axes, group in zip(panels, groups, strict=True):
        curves = group_curves(results, group)
        draw_severities(axes, curves)
        axes.set_title(group if single else f"{group} (mean)")
        if single:
            # Below the panel: inside, four names would lie on the curves.
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.24), "borderaxespad": 0}
            axes.legend(fontsize=8, handlelength=2.4, labelspacing=0.25, **place)
    peak = [100 * a["accuracy"] for r in results.values() for a in top1_entries(r)]
    percent_axis(panels[0], "top-1 accuracy (%)", peak)
    draw_bars(below.subplots(), results, sorted(present, key=lambda n: groups.index(present[n])))
    if not single:
        handles = [Line2D([], [], label=label, **look(p)) for p, label in enumerate(results)]
        above.legend(handles=handles, loc="outside lower center", ncols=min(len(results), 4))
    fig.suptitle(title, fontsize=10)
    return fig


def top1_entries(result: Result) -> list[Mapping[str, Any]]:
    """Every top-1 entry of a result."""
    return [entry for corruption in result["corruptions"].values() for entry in corruption["top1"]]


def look(place: int) -> dict[str, Any]:
    """Colour, line and marker of the curve with this place in the legend."""
    place %= len(COLOURS)
    return {"color": COLOURS[place], "linestyle": LINES[place], "marker": MARKERS[place]}


def percents(entry: Mapping[str, Any]) -> list[float]:
    """A corruption's top-1 accuracies over the severities, in percent."""
    return [100 * accuracy["accuracy"] for accuracy in entry["top1"]]


def group_curves(results: Mapping[str, Result], group: str) -> list[tuple[str, list[float]]]:
    """(label, percents) of each curve in a group's panel.

    A mean over a group is left empty where the result lacks a corruption that another has: means
    over different corruptions do not compare.
    """
    members = {
        label: {n: percents(e) for n, e in r["corruptions"].items() if e["group"] == group}
        for label, r in results.items()
    }
    if len(results) == 1:
        (only,) = members.values()
        return [(readable(name), values) for name, values in only.items()]
    union = {name for rows in members.values() for name in rows}
    return [
        (label, [fmean(values) for values in zip(*rows.values(), strict=True)])
        if rows.keys() == union
        else (label, [])
        for label, rows in members.items()
    ]


def draw_severities(axes: Axes, curves: Sequence[tuple[str, list[float]]]) -> None:
    """One group's curves over the five severities."""
    for place, (label, values) in enumerate(curves):
        if values:
            axes.plot(range(1, len(values) + 1), values, label=label, **look(place))
    axes.set_xlabel("severity")
    axes.set_xticks(range(1, 6))
    axes.set_xlim(0.7, 5.3)


def draw_bars(axes: Axes, results: Mapping[str, Result], names: Sequence[str]) -> None:
    """A bar per corruption and result, and one for the mean; space between the groups."""
    spots = bar_spots(results, names)
    width = BARS_WIDTH / len(results)
    drawn = []
    for place, result in enumerate(results.values()):
        bars = {name: fmean(percents(entry)) for name, entry in result["corruptions"].items()}
        if result["summary"]["mean_accuracy"] is not None:
            bars[MEAN] = 100 * result["summary"]["mean_accuracy"]
        offset = (place - (len(results) - 1) / 2) * width
        marks = axes.bar(
            [spots[name] + offset for name in bars],
            list(bars.values()),
            width * 0.94,
            color=COLOURS[place % len(COLOURS)] if len(results) > 1 else curve_colours(result),
            hatch=HATCHES[place % len(HATCHES)],
            edgecolor="white",
            linewidth=0,
        )
        if len(results) <= 2:  # more would not fit
            digits, size = ("%.1f", 7) if len(results) == 1 else ("%.0f", 6)
            axes.bar_label(marks, fmt=digits, fontsize=size, padding=1)
        drawn += bars.values()
    percent_axis(axes, "top-1, mean of severities (%)", drawn)
    axes.set_xticks(list(spots.values()), [readable(name) for name in spots], rotation=32)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    # A few bars stay narrow, and in the middle.
    left, right = min(spots.values()) - 0.6, max(spots.values()) + 0.6
    margin = max(0.0, 12 - (right - left)) / 2
    axes.set_xlim(left - margin, right + margin)


def bar_spots(results: Mapping[str, Result], names: Sequence[str]) -> dict[str, float]:
    """Where each corruption's bars stand, and the mean's if there is one."""
    groups = {n: e["group"] for r in results.values() for n, e in r["corruptions"].items()}
    spots: dict[str, float] = {}
    spot = 0.0
    for before, name in zip([None, *names], names, strict=False):
        spot += 1.0 if before is None or groups[before] == groups[name] else 1.5
        spots[name] = spot
    if any(result["summary"]["mean_accuracy"] is not None for result in results.values()):
        spots[MEAN] = spot + 1.6
    return spots


def curve_colours(result: Result) -> list[str]:
    """For a single result: each bar in the colour of the corruption's curve, grey for the mean."""
    seen: Counter[str] = Counter()
    colours = []
    for entry in result["corruptions"].values():
        colours.append(COLOURS[seen[entry["group"]] % len(COLOURS)])
        seen[entry["group"]] += 1
    has_mean = result["summary"]["mean_accuracy"] is not None
    return [*colours, "#666666"] if has_mean else colours


def readable(name: str) -> str:
    """`gaussian_noise` as `gaussian noise`."""
    return name.replace("_", " ").replace("jpeg", "JPEG")
