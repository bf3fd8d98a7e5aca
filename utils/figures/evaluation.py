"""The figures of evaluations: attacked images, accuracy against the radius, ImageNet-C."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures import style
from utils.storage.conditions import Conditions, length_number, length_text, unit_of, worst_of
from utils.storage.results import (
    AttackResult,
    Estimate,
    ImageNetCResult,
    Result,
    mean_estimate,
    mean_over_seeds,
)

SIDE = style.WIDTH / 6.5  # inches of an image: two triples beside each other, and gaps
LETTERS = 14  # that fit below an image
Curve = Sequence[AttackResult]  # by radius
# By norm and attack each label's points: radius, of 255 for Linf, and top-1, over seeds its mean.
Panels = dict[tuple[str, str], dict[str, list[tuple[float, Estimate]]]]
LARGE = 0.25  # a ball in which every pixel may change so much leaves no image recognisable
NEARLY_NONE = 0.01  # of the images
RISE = 0.005  # of the images
NOTE_WIDTH = 110  # characters
MEAN = "mean of the 15"
Results = Mapping[str, ImageNetCResult]  # by label


@dataclass(frozen=True)
class AttackedImage:
    """One image and what became of it."""

    clean: Any  # (3, H, W) pixels in [0, 1], array or CPU tensor
    adversarial: Any
    label: str  # name of the true class
    before: str  # of the class predicted on the clean image
    after: str
    attack: str


@style.applied
def attack_images(images: Sequence[AttackedImage], max_change: float, title: str) -> Figure:
    """Images, their perturbations, and what becomes of them; a change of `max_change` is white."""
    across = min(2, len(images))
    rows = -(-len(images) // across)
    widths = ([1, 1, 1, 0.12] * across)[:-1]  # the gap between two triples is a column of its own
    size = (SIDE * (sum(widths) + 0.3), (SIDE + 0.36) * rows + 0.55)
    fig = Figure(figsize=size)
    fig.set_layout_engine("constrained", w_pad=0.02, h_pad=0.03, wspace=0, hspace=0.02)
    grid = fig.subplots(rows, len(widths), width_ratios=widths, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, image in enumerate(images):
        row, column = index // across, 4 * (index % across)
        draw_triple(list(grid[row, column : column + 3]), image, max_change)
    captions = ("original", f"change, ±{255 * max_change:.3g}/255", "adversarial", "")
    for column, axes in enumerate(grid[0]):
        axes.set_title(captions[column % 4], fontsize=7.5)
    note = "Below: true class, attack, and the classes predicted (✓ right, ✗ wrong)."
    style.footnote(fig, f"{note} Grey is no change.")
    fig.suptitle(style.literal(title), fontsize=8.5)
    return fig


def draw_triple(panels: Sequence[Axes], image: AttackedImage, max_change: float) -> None:
    """An image, its change, and the adversarial image, with what they are below."""
    clean, adversarial = (
        np.moveaxis(np.asarray(x, float), 0, 2) for x in (image.clean, image.adversarial)
    )
    change = 0.5 + (adversarial - clean) / (2 * max_change)
    captions = (
        prediction_caption(image.before, image.label),
        (f"{shortened(image.label)}\n{style.literal(image.attack)}", "black"),
        prediction_caption(image.after, image.label),
    )
    pixels = (clean, change, adversarial)
    for axes, values, (text, colour) in zip(panels, pixels, captions, strict=True):
        axes.imshow(np.clip(values, 0, 1), interpolation="nearest")
        axes.set_axis_on()
        axes.grid(visible=False)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(text, color=colour, fontsize=7, labelpad=2)


def prediction_caption(prediction: str, label: str) -> tuple[str, str]:
    """The predicted class with a sign for right or wrong, and a colour that says the same."""
    sign, colour = ("✓", style.COLOURS[2]) if prediction == label else ("✗", style.COLOURS[1])
    return f"{sign} {shortened(prediction)}", colour


def shortened(name: str) -> str:
    """A class's name, as much as fits below an image."""
    return style.literal(name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…")


def curves_of(results: Mapping[Path, Result]) -> dict[Path, Curve]:
    """Attacks that differ in their radius alone (and steps), two radii at least, by first file."""
    groups: dict[Conditions, dict[float, tuple[Path, AttackResult]]] = {}
    for path, result in results.items():
        if isinstance(result, AttackResult):
            names = tuple(text.partition("@")[0] for text in result.conditions.attacks)
            like = replace(result.conditions, eps=0.0, attacks=names)
            groups.setdefault(like, {})[result.conditions.eps] = path, result
    curves: dict[Path, Curve] = {}
    for by_eps in groups.values():
        if len(by_eps) > 1:
            files = [by_eps[eps] for eps in sorted(by_eps)]
            curves[files[0][0]] = [result for _, result in files]
    return curves


def weak_attack_signs(curve: Curve) -> list[str]:
    """Signs in a curve that its attacks are weak, after Carlini et al. 2019, arXiv:1902.06705."""
    conditions = curve[-1].conditions
    radii = [length_text(result.conditions.eps, conditions.norm) for result in curve]
    robust = [result.worst_case.top1.fraction for result in curve]
    warnings = []
    for (eps, less), (larger_eps, more) in pairwise(zip(radii, robust, strict=True)):
        if more - less > RISE:
            warnings.append(
                f"robust accuracy rises by {100 * (more - less):.1f} % from eps {eps} to"
                f" {larger_eps}, though the larger ball holds the smaller: the attack is weak, so"
                " take more steps or another step size"
            )
    values = 3 * conditions.crop**2
    large = LARGE * {"Linf": 1.0, "L2": math.sqrt(values), "L1": float(values)}[conditions.norm]
    if conditions.eps >= large and robust[-1] > NEARLY_NONE:
        warnings.append(
            f"robust accuracy is still {100 * robust[-1]:.1f} % at eps {radii[-1]}, where no image"
            " is recognisable: the attack is weak, so take more steps, another loss, or autoattack"
        )
    return warnings


def curve_note(curve: Curve) -> str:
    """The attacks behind a curve, their steps, protocol and number of images."""
    conditions = curve[0].conditions
    texts = [text.partition("@") for result in curve for text in result.conditions.attacks]
    names = ", ".join(dict.fromkeys(name for name, _, _ in texts))
    steps = sorted({step for _, _, step in texts if step}, key=float)
    if steps:
        ends = " to ".join(dict.fromkeys((steps[0], steps[-1])))
        names += f", steps of {ends}{unit_of(conditions.norm)}"
    images = f"{curve[0].clean.top1.n} images"
    return textwrap.fill(f"{names}; protocol {conditions.protocol}; {images}.", NOTE_WIDTH)


def panels_of(curves: Mapping[str, Sequence[Curve]]) -> Panels:
    """The curves of every attack, from the clean accuracy on; of a single attack the worst case.

    A label has a curve for each of its seeds.
    """
    panels: Panels = {}
    for label, seeds in curves.items():
        first = seeds[0][0]
        attacks = list(dict.fromkeys(a.title for a in first.attacks if not a.is_part))
        worst = worst_of(first.conditions.attacks)
        for attack in [*(attacks if len(attacks) > 1 else []), worst]:
            panel = panels.setdefault((first.conditions.norm, attack), {})
            panel[label] = mean_curve(seeds, attack)
    return panels


def mean_curve(seeds: Sequence[Curve], attack: str) -> list[tuple[float, Estimate]]:
    """Radius, of 255 for Linf, and top-1 over the seeds, where all of them have that radius."""
    by_eps = [
        {0.0: curve[0].clean.top1.estimate}
        | {result.conditions.eps: top1_under(attack, result) for result in curve}
        for curve in seeds
    ]
    points = []
    for eps in sorted(set.intersection(*map(set, by_eps))):
        tops = [of_seed[eps] for of_seed in by_eps]
        mean = mean_over_seeds([top1.percent for top1 in tops]) if len(tops) > 1 else tops[0]
        radius = float(length_number(eps, seeds[0][0].conditions.norm))
        points.append((radius, replace(mean, warned=any(top1.warned for top1 in tops))))
    return points


def top1_under(attack: str, result: AttackResult) -> Estimate:
    """What the attack of this title leaves; of another title the worst case."""
    found = [a.top1 for a in result.attacks if a.title == attack] or [result.worst_case.top1]
    return replace(found[0].estimate, warned=bool(result.warnings))


@style.applied
def robustness(curves: Mapping[str, Sequence[Curve]]) -> Figure:
    """Accuracy against the radius, a panel for each norm and attack; at 0 it is clean.

    A label's curves are those of its seeds. Points with a warning are hollow.
    """
    panels = panels_of(curves)
    across = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
    down = -(-len(panels) // across)
    fig = Figure(figsize=(style.WIDTH, 2.1 * down + 0.5), layout="constrained")
    grid = fig.subplots(down, across, sharey=True, squeeze=False)
    looks = {label: style.curve(index) for index, label in enumerate(curves)}
    drawn: list[Estimate] = []
    for axes, ((norm, attack), panel) in zip(grid.flat, panels.items(), strict=False):
        for label, points in panel.items():
            draw_points(axes, points, looks[label])
            drawn += [top1 for _, top1 in points]
        axes.set_title(attack)
        axes.set_xlabel("eps (of 255)" if norm == "Linf" else f"eps ({norm} norm)")
        axes.margins(x=0.03)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    warned = any(top1.warned for top1 in drawn)
    handles = style.legend_handles(looks if len(curves) > 1 else {}, warned)
    if handles:
        fig.legend(handles=handles, loc="outside upper center", ncols=2)
    for axes in grid[:, 0]:
        style.percent_axis(axes, "top-1 accuracy (%)", [top1.whiskers[1] for top1 in drawn])
    notes = dict.fromkeys(curve_note(curve) for seeds in curves.values() for curve in seeds)
    whiskers = ""
    if any(len(seeds) == 1 for seeds in curves.values()):
        whiskers += "Whiskers: 95 % Wilson intervals. "
    if any(len(seeds) > 1 for seeds in curves.values()):
        whiskers += "Bands: ± one standard deviation over the seeds (n - 1). "
    style.footnote(fig, "\n".join([f"{whiskers}At 0: clean.", *notes]))
    return fig


def draw_points(
    axes: Axes, points: Sequence[tuple[float, Estimate]], look: Mapping[str, Any]
) -> None:
    """One curve: a band over several seeds, else whiskers."""
    radii, percents = [eps for eps, _ in points], [top1.percent for _, top1 in points]
    lows, highs = zip(*(top1.whiskers for _, top1 in points), strict=True)
    if points[0][1].spread is None:
        axes.vlines(radii, lows, highs, color=look["color"], linewidth=0.9)
    else:
        axes.fill_between(radii, lows, highs, color=look["color"], alpha=0.15, linewidth=0)
    axes.plot(radii, percents, **look)
    for eps, top1 in points:
        if top1.warned:
            axes.plot(eps, top1.percent, **style.marked(look, warned=True))


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
