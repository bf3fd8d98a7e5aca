"""The robustness curve: accuracy against the radius of the attack's ball."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures import style
from utils.storage.accuracy import Estimate, over_seeds
from utils.storage.conditions import Conditions, length_number, length_text, worst_of
from utils.storage.results import AttackResult, Result

Curve = Sequence[AttackResult]  # by radius
LARGE = 0.25  # a ball in which every pixel may change so much leaves no image recognisable
NEARLY_NONE = 0.01  # of the images
RISE = 0.005  # of the images
NOTE_WIDTH = 110  # characters


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


def weak_attack_warnings(curve: Curve) -> list[str]:
    """Signs in a curve that its attacks are weak, after Carlini et al. 2019, arXiv:1902.06705."""
    warnings = []
    for smaller, larger in pairwise(curve):
        rise = larger.worst_case.top1.fraction - smaller.worst_case.top1.fraction
        if rise > RISE:
            warnings.append(
                f"robust accuracy rises by {100 * rise:.1f} % from eps {radius_of(smaller)} to"
                f" {radius_of(larger)}, though the larger ball holds the smaller: the attack is"
                " weak, so take more steps or another step size"
            )
    last, conditions = curve[-1], curve[-1].conditions
    values = 3 * conditions.crop**2
    large = LARGE * {"Linf": 1.0, "L2": math.sqrt(values), "L1": float(values)}[conditions.norm]
    if conditions.eps >= large and last.worst_case.top1.fraction > NEARLY_NONE:
        warnings.append(
            f"robust accuracy is still {last.worst_case.top1.percent:.1f} % at eps"
            f" {radius_of(last)}, where no image is recognisable: the attack is weak, so take more"
            " steps, another loss, or autoattack"
        )
    return warnings


def radius_of(result: AttackResult) -> str:
    return length_text(result.conditions.eps, result.conditions.norm)


def curve_note(curve: Curve) -> str:
    """The attacks behind a curve, their steps, protocol and number of images."""
    conditions = curve[0].conditions
    texts = [text.partition("@") for result in curve for text in result.conditions.attacks]
    steps = sorted({step for _, _, step in texts if step}, key=float)
    unit = "/255" if conditions.norm == "Linf" else f" ({conditions.norm})"
    size = f", steps of {' to '.join(dict.fromkeys((steps[0], steps[-1])))}{unit}" if steps else ""
    names = ", ".join(dict.fromkeys(name for name, _, _ in texts))
    images = f"{curve[0].clean.top1.n} images"
    return textwrap.fill(f"{names}{size}; protocol {conditions.protocol}; {images}.", NOTE_WIDTH)


class Point(NamedTuple):
    """Accuracy at one radius under one attack, or in the worst case; over seeds their mean."""

    label: str
    attack: str
    norm: str
    eps: float  # of 255 for Linf
    seeds: int
    n: int  # images
    top1: Estimate


def points_of(curves: Mapping[str, Sequence[Curve]]) -> list[Point]:
    """The points of every attack's curve, which begins with the clean accuracy, by label.

    A label has a curve for each of its seeds; radii that not all of them have are left out. Of a
    single attack the worst case stands alone.
    """
    points = []
    for label, seeds in curves.items():
        first = seeds[0][0]
        norm, n = first.conditions.norm, first.clean.top1.n
        attacks = list(dict.fromkeys(a.title for a in first.attacks if not a.is_part))
        worst = worst_of(first.conditions.attacks)
        for attack in [*(attacks if len(attacks) > 1 else []), worst]:
            by_eps = [
                {0.0: curve[0].clean.top1.estimate}
                | {result.conditions.eps: top1_under(attack, result) for result in curve}
                for curve in seeds
            ]
            for eps in sorted(set.intersection(*map(set, by_eps))):
                tops = [of_seed[eps] for of_seed in by_eps]
                mean = over_seeds([top1.percent for top1 in tops]) if len(tops) > 1 else tops[0]
                top1 = replace(mean, warned=any(top1.warned for top1 in tops))
                x = float(length_number(eps, norm))
                points.append(Point(label, attack, norm, x, len(tops), n, top1))
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
    points = points_of(curves)
    panels = list(dict.fromkeys((point.norm, point.attack) for point in points))
    across = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
    down = -(-len(panels) // across)
    fig = Figure(figsize=(style.WIDTH, 2.1 * down + 0.5), layout="constrained")
    grid = fig.subplots(down, across, sharey=True, squeeze=False)
    for axes, (norm, attack) in zip(grid.flat, panels, strict=False):
        of_panel = [p for p in points if (p.norm, p.attack) == (norm, attack)]
        for index, label in enumerate(curves):
            draw_points(axes, [p for p in of_panel if p.label == label], style.curve(index))
        axes.set_title(attack if len(panels) > 1 else "")
        axes.set_xlabel("eps (of 255)" if norm == "Linf" else f"eps ({norm} norm)")
        axes.margins(x=0.03)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    looks = {label: style.curve(index) for index, label in enumerate(curves)}
    warned = any(point.top1.warned for point in points)
    handles = style.legend_handles(looks if len(curves) > 1 else {}, warned)
    if handles:
        fig.legend(handles=handles, loc="outside upper center", ncols=2)
    name = f"\n{panels[0][1]}" if len(panels) == 1 else ""
    highest = [point.top1.whiskers[1] for point in points]
    for axes in grid[:, 0]:
        style.percent_axis(axes, f"top-1 accuracy (%){name}", highest)
    notes = dict.fromkeys(curve_note(curve) for seeds in curves.values() for curve in seeds)
    bands = any(point.seeds > 1 for point in points)
    whiskers = "Bands: ± one standard deviation over the seeds (n - 1)." if bands else ""
    if any(point.seeds == 1 for point in points):
        whiskers = f"Whiskers: 95 % Wilson intervals. {whiskers}"
    style.footnote(fig, "\n".join([f"{whiskers.strip()} At 0: clean.", *notes]))
    return fig


def draw_points(axes: Axes, points: Sequence[Point], look: Mapping[str, Any]) -> None:
    """One curve: a band over several seeds, else whiskers."""
    if not points:
        return
    radii, percents = [p.eps for p in points], [p.top1.percent for p in points]
    lows, highs = zip(*(p.top1.whiskers for p in points), strict=True)
    if points[0].seeds > 1:
        axes.fill_between(radii, lows, highs, color=look["color"], alpha=0.15, linewidth=0)
    else:
        axes.vlines(radii, lows, highs, color=look["color"], linewidth=0.9)
    axes.plot(radii, percents, **look)
    for point in (point for point in points if point.top1.warned):
        axes.plot(point.eps, point.top1.percent, **style.marked(look, warned=True))
