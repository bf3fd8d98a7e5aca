"""The figure of ImageNet-C results: curves over the severities, bars per corruption."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures import style
from utils.storage.results import Estimate, ImageNetCResult, mean_estimate

MEAN = "mean of the 15"
Results = Mapping[str, ImageNetCResult]  # by label


@style.applied
def imagenet_c(results: Results, title: str = "") -> Figure:
    """Accuracy against severity per group of corruptions, and bars per corruption below."""
    fullest = sorted(results.values(), key=lambda result: -len(result.corruptions))
    groups: dict[str, list[str]] = {}
    for name, corruption in (item for result in fullest for item in result.corruptions.items()):
        members = groups.setdefault(corruption.group, [])
        members += [name] * (name not in members)
    single = len(results) == 1
    fig = Figure(figsize=(style.WIDTH, 4.9 if single else 4.5), layout="constrained")
    heights = (1.2 if single else 1, 1.1)
    above, below = fig.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    panels = above.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (group, members) in zip(panels, groups.items(), strict=True):
        for index, (label, values) in enumerate(group_curves(results, members).items()):
            warned = bool(results.get(label, fullest[0]).warnings)
            look = style.marked(style.curve(index), warned)
            axes.plot(range(1, len(values) + 1), values, label=label, **look)
        axes.set(xlabel="severity", xticks=range(1, 6), xlim=(0.7, 5.3))
        axes.set_title(group if single else f"{group} (mean)")
        if single:  # below the panel: inside, four names would lie on the curves
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.3), "borderaxespad": 0}
            axes.legend(fontsize=7, handlelength=1.2, handletextpad=0.4, labelspacing=0.2, **place)
    accuracies = [a.percent for r in fullest for c in r.corruptions.values() for a in c.top1]
    style.percent_axis(panels[0], "top-1 accuracy (%)", accuracies)
    draw_bars(below.subplots(), results, groups)
    if not single:
        handles = style.legend_handles({label: style.curve(i) for i, label in enumerate(results)})
        above.legend(handles=handles, loc="outside lower center", ncols=2)
    note = "Whiskers: 95 % Wilson intervals over the images, not images x severities."
    hollow = any(result.warnings for result in results.values())
    style.footnote(fig, note + " Hollow: evaluated with a warning." * hollow)
    fig.suptitle(style.literal(title))
    return fig


def group_curves(results: Results, members: Sequence[str]) -> dict[str, list[float]]:
    """Percents by severity: of each corruption of a single result, else each result's mean.

    A result that lacks a corruption of the group has no values.
    """
    if len(results) == 1:
        (result,) = results.values()
        return {readable(n): [a.percent for a in result.corruptions[n].top1] for n in members}
    curves: dict[str, list[float]] = {}
    for label, result in results.items():
        top1 = [result.corruptions[name].top1 for name in members if name in result.corruptions]
        severities = zip(*top1, strict=True) if len(top1) == len(members) else ()
        curves[label] = [fmean(a.percent for a in accuracies) for accuracies in severities]
    return curves


def bars_of(result: ImageNetCResult) -> dict[str, Estimate]:
    """Mean over the severities of each corruption, then over the 15."""
    entries = result.corruptions.items()
    means = {n: (fmean(a.fraction for a in c.top1), c.top1[0].n) for n, c in entries}
    if result.summary.mean_accuracy is not None:
        means[MEAN] = (result.summary.mean_accuracy, max(n for _, n in means.values()))
    return {name: mean_estimate(mean, n) for name, (mean, n) in means.items()}


def draw_bars(axes: Axes, results: Results, groups: Mapping[str, Sequence[str]]) -> None:
    """A bar per corruption and result, and one for the mean; space between the groups."""
    positions: dict[str, float] = {}
    colours = {MEAN: "#666666"}  # of a single result's bars: those of the corruptions' curves
    for gap, members in enumerate(groups.values()):
        for index, name in enumerate(members):
            positions[name] = len(positions) + 0.5 * gap
            colours[name] = style.curve(index)["color"]
    if any(result.summary.mean_accuracy is not None for result in results.values()):
        positions[MEAN] = len(positions) + 0.5 * len(groups)
    width, tops = 0.82 / len(results), []
    for index, result in enumerate(results.values()):
        offset = (index - (len(results) - 1) / 2) * width
        for name, bar in bars_of(result).items():
            x = positions[name] + offset
            colour = colours[name] if len(results) == 1 else style.curve(index)["color"]
            axes.bar(x, bar.percent, 0.94 * width, color=colour, fill=not result.warnings)
            axes.vlines(x, *bar.whiskers, color="#222222", linewidth=0.8)
            tops.append(bar.whiskers[1])
            if len(results) == 1:  # more would not fit
                axes.text(x, tops[-1], f"{bar.percent:.0f}", ha="center", va="bottom", fontsize=7)
    style.percent_axis(axes, "top-1, mean of severities (%)", tops)
    ticks, labels = list(positions.values()), [readable(name) for name in positions]
    axes.set_xticks(ticks, labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=7)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    # A few bars stay narrow, and in the middle.
    middle, half = ticks[-1] / 2, max(6.0, ticks[-1] / 2 + 0.6)
    axes.set_xlim(middle - half, middle + half)


def readable(name: str) -> str:
    return name.replace("_", " ").replace("jpeg", "JPEG")
