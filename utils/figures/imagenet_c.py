"""The figure of ImageNet-C results: curves over the severities, bars per corruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures.style import (
    COLOURS,
    HATCHES,
    WIDTH,
    footnote,
    handles_of,
    line_style,
    literal,
    percent_axis,
    styled,
)
from utils.storage.accuracy import Estimate, mean_estimate
from utils.storage.results import ImageNetCResult

MEAN = "mean of the 15"
BARS_WIDTH = 0.82  # of all bars at one position, where 1 is the distance between positions


@styled
def imagenet_c(results: Mapping[str, ImageNetCResult], title: str = "") -> Figure:
    """Accuracy against severity per group of corruptions, and bars per corruption below.

    With one result the curves are its corruptions; with more, each result's mean over the group.
    Bars are means over the five severities; the last is the mean over the 15, where there is one.

    Args:
        results: by label. A corruption that only some results hold has a bar where it is.
    """
    fullest = sorted(results.values(), key=lambda result: -len(result.corruptions))
    group_of = {n: c.group for result in fullest for n, c in result.corruptions.items()}
    groups = list(dict.fromkeys(group_of.values()))
    single = len(results) == 1
    fig = Figure(figsize=(WIDTH, 4.9 if single else 4.5), layout="constrained")
    above, below = fig.subfigures(
        2, 1, squeeze=False, height_ratios=(1.2 if single else 1, 1.1)
    ).flat
    panels = np.atleast_1d(above.subplots(1, len(groups), sharey=True))
    for axes, group in zip(panels, groups, strict=True):
        draw_severities(axes, group_curves(results, group))
        axes.set_title(group if single else f"{group} (mean)")
        if single:
            # Below the panel: inside, four names would lie on the curves.
            position = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.3), "borderaxespad": 0}
            axes.legend(
                fontsize=7, handlelength=1.2, handletextpad=0.4, labelspacing=0.2, **position
            )
    peak = [a.percent for r in fullest for c in r.corruptions.values() for a in c.top1]
    percent_axis(panels[0], "top-1 accuracy (%)", peak)
    names = sorted(group_of, key=lambda name: groups.index(group_of[name]))
    draw_bars(below.subplots(), results, bar_spots(results, names, group_of))
    if not single:
        handles = handles_of(results, map(line_style, range(len(results))))
        above.legend(handles=handles, loc="outside lower center", ncols=min(len(results), 2))
    note = "Whiskers: 95 % Wilson intervals over the images, not images x severities."
    footnote(fig, note)
    fig.suptitle(literal(title))
    return fig


def group_curves(
    results: Mapping[str, ImageNetCResult], group: str
) -> list[tuple[str, list[float]]]:
    """(label, percents) of each curve in a group's panel.

    A mean over a group is left empty where the result lacks a corruption that another has: means
    over different corruptions do not compare.
    """
    members = {
        label: {
            name: [accuracy.percent for accuracy in corruption.top1]
            for name, corruption in result.corruptions.items()
            if corruption.group == group
        }
        for label, result in results.items()
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
    for index, (label, values) in enumerate(curves):
        if values:
            axes.plot(range(1, len(values) + 1), values, label=label, **line_style(index))
    axes.set_xlabel("severity")
    axes.set_xticks(range(1, 6))
    axes.set_xlim(0.7, 5.3)


def bars_of(result: ImageNetCResult) -> dict[str, Estimate]:
    """Mean over the severities of each corruption, then over the 15."""
    entries = result.corruptions.items()
    means = {n: (fmean(a.fraction for a in c.top1), c.top1[0].n) for n, c in entries}
    if result.summary.mean_accuracy is not None:
        means[MEAN] = (result.summary.mean_accuracy, max(n for _, n in means.values()))
    return {name: mean_estimate(mean, n) for name, (mean, n) in means.items()}


def draw_bars(
    axes: Axes, results: Mapping[str, ImageNetCResult], spots: Mapping[str, float]
) -> None:
    """A bar per corruption and result, and one for the mean; space between the groups."""
    width = BARS_WIDTH / len(results)
    tops = []
    for index, result in enumerate(results.values()):
        bars = bars_of(result)
        offset = (index - (len(results) - 1) / 2) * width
        middles = [spots[name] + offset for name in bars]
        axes.bar(
            middles,
            [bar.percent for bar in bars.values()],
            width * 0.94,
            color=COLOURS[index % len(COLOURS)] if len(results) > 1 else curve_colours(result),
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor="white",
            linewidth=0,
        )
        for x, bar in zip(middles, bars.values(), strict=True):
            axes.vlines(x, *bar.whiskers, color="#222222", linewidth=0.8)
            tops.append(bar.whiskers[1])
            if len(results) == 1:  # more would not fit
                axes.annotate(
                    f"{bar.percent:.0f}", (x, tops[-1]), (0, 1), textcoords="offset points",
                    ha="center", fontsize=7,
                )  # fmt: skip
    percent_axis(axes, "top-1, mean of severities (%)", tops)
    axes.set_xticks(list(spots.values()), [readable(name) for name in spots], rotation=40)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor", fontsize=7)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    # A few bars stay narrow, and in the middle.
    left, right = min(spots.values()) - 0.6, max(spots.values()) + 0.6
    margin = max(0.0, 12 - (right - left)) / 2
    axes.set_xlim(left - margin, right + margin)


def bar_spots(
    results: Mapping[str, ImageNetCResult], names: Sequence[str], group_of: Mapping[str, str]
) -> dict[str, float]:
    """Where each corruption's bars stand, and the mean's if there is one."""
    spots: dict[str, float] = {}
    spot = 0.0
    for before, name in zip([None, *names], names, strict=False):
        spot += 1.0 if before is None or group_of[before] == group_of[name] else 1.5
        spots[name] = spot
    if any(result.summary.mean_accuracy is not None for result in results.values()):
        spots[MEAN] = spot + 1.6
    return spots


def curve_colours(result: ImageNetCResult) -> list[str]:
    """For a single result: each bar in the colour of the corruption's curve, grey for the mean."""
    groups = [entry.group for entry in result.corruptions.values()]
    indices = [groups[:place].count(group) for place, group in enumerate(groups)]
    colours = [COLOURS[index % len(COLOURS)] for index in indices]
    has_mean = result.summary.mean_accuracy is not None
    return [*colours, "#666666"] if has_mean else colours


def readable(name: str) -> str:
    return name.replace("_", " ").replace("jpeg", "JPEG")
