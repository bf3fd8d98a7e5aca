"""The robustness curve: accuracy against the radius of the attack's ball."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from utils.figures.style import (
    WIDTH,
    curve_style,
    footnote,
    legend_handles,
    marked,
    percent_axis,
    styled,
)
from utils.storage.conditions import Conditions, length_number, length_text, worst_of
from utils.storage.results import AttackResult

Curve = Sequence[AttackResult]  # by radius
LARGE = 0.25  # a ball in which every pixel may change so much leaves no image recognisable
NEARLY_NONE = 0.01  # of the images
RISE = 0.005  # of the images
NOTE_WIDTH = 110  # characters


def curves_of(results: Iterable[AttackResult]) -> list[Curve]:
    """The evaluations that differ in their radius alone (and steps), two radii at least."""
    groups: dict[Conditions, dict[float, AttackResult]] = {}
    for result in results:
        names = tuple(text.partition("@")[0] for text in result.conditions.attacks)
        like = replace(result.conditions, eps=0.0, attacks=names)
        groups.setdefault(like, {})[result.conditions.eps] = result
    return [
        [by_eps[eps] for eps in sorted(by_eps)] for by_eps in groups.values() if len(by_eps) > 1
    ]


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


@styled
def robustness(curves: Mapping[str, Curve]) -> Figure:
    """Worst-case accuracy against the radius, a panel for each norm; at 0 it is clean.

    Points with a warning are hollow.
    """
    norms = list(dict.fromkeys(curve[0].conditions.norm for curve in curves.values()))
    fig = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    columns = fig.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    panels = dict(zip(norms, columns, strict=True))
    highest: list[float] = []
    styles: dict[str, dict[str, dict[str, Any]]] = {norm: {} for norm in norms}
    for index, (label, curve) in enumerate(curves.items()):
        norm, style = curve[0].conditions.norm, curve_style(index)
        radii = [0.0, *(float(length_number(r.conditions.eps, norm)) for r in curve)]
        accuracies = [curve[0].clean.top1, *(result.worst_case.top1 for result in curve)]
        lows, highs = zip(*(accuracy.estimate.whiskers for accuracy in accuracies), strict=True)
        percents = [accuracy.percent for accuracy in accuracies]
        panels[norm].vlines(radii, lows, highs, color=style["color"], linewidth=0.9)
        panels[norm].plot(radii, percents, **style)
        points = zip(radii[1:], percents[1:], curve, strict=True)
        for x, y in ((x, y) for x, y, result in points if result.warnings):
            panels[norm].plot(x, y, **marked(style, warned=True))
        styles[norm][label] = style
        highest += highs
    warned = any(result.warnings for curve in curves.values() for result in curve)
    for norm, axes in panels.items():
        axes.set_xlabel("eps (of 255)" if norm == "Linf" else f"eps ({norm} norm)")
        axes.margins(x=0.03)
        handles = legend_handles(styles[norm] if len(curves) > 1 else {}, warned)
        if handles:
            axes.legend(handles=handles)
    over = {worst_of(curve[0].conditions.attacks) for curve in curves.values()}
    percent_axis(panels[norms[0]], f"top-1 accuracy (%)\n{' / '.join(sorted(over))}", highest)
    notes = dict.fromkeys(map(curve_note, curves.values()))
    footnote(fig, "\n".join(["Whiskers: 95 % Wilson intervals. At 0: clean.", *notes]))
    return fig
