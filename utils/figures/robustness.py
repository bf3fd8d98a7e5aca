"""The robustness curve: accuracy against the radius of the attack's ball."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures.style import WIDTH, footnote, line_style, literal, percent_axis, styled
from utils.storage.accuracy import Accuracy
from utils.storage.conditions import Conditions, length_number, length_text
from utils.storage.results import AttackResult

Curve = Sequence[AttackResult]  # by radius
LARGE = 0.25  # a ball in which every pixel may change so much leaves no image recognisable
NEARLY_NONE = 0.01  # of the images
RISE = 0.005  # of the images


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
    """Signs in a curve that its attacks are weak.

    After Carlini et al. 2019, arXiv:1902.06705: accuracy falls with the radius, and to nothing
    where the ball holds images that nobody could recognise.
    """
    warnings = []
    for smaller, larger in pairwise(curve):
        rise = larger.worst_case.top1.fraction - smaller.worst_case.top1.fraction
        if rise > RISE:
            warnings.append(
                f"robust accuracy rises by {100 * rise:.1f} % from eps {radius_of(smaller)} to"
                f" {radius_of(larger)}, though the larger ball holds the smaller: the attack is"
                " weak, so take more steps or another step size"
            )
    last = curve[-1]
    if last.conditions.eps >= large_radius(last.conditions) and (
        last.worst_case.top1.fraction > NEARLY_NONE
    ):
        warnings.append(
            f"robust accuracy is still {last.worst_case.top1.percent:.1f} % at eps"
            f" {radius_of(last)}, where no image is recognisable: the attack is weak, so take more"
            " steps, another loss, or autoattack"
        )
    return warnings


def large_radius(conditions: Conditions) -> float:
    """The radius of a ball in which every pixel may change by LARGE."""
    values = 3 * conditions.crop**2
    return LARGE * {"Linf": 1.0, "L2": math.sqrt(values), "L1": float(values)}[conditions.norm]


def radius_of(result: AttackResult) -> str:
    return length_text(result.conditions.eps, result.conditions.norm)


@styled
def robustness(curves: Mapping[str, Curve], title: str = "") -> Figure:
    """Worst-case accuracy against the radius, a panel for each norm; at 0 it is clean.

    Args:
        curves: by label.
    """
    norms = list(dict.fromkeys(curve[0].conditions.norm for curve in curves.values()))
    width = WIDTH if len(norms) > 1 or len(curves) > 2 else 0.7 * WIDTH
    fig = Figure(figsize=(width, 2.6), layout="constrained")
    panels = fig.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    tops = []
    for index, (label, curve) in enumerate(curves.items()):
        norm = curve[0].conditions.norm
        tops += draw_curve(panels[norms.index(norm)], curve, literal(label), index)
    for axes, norm in zip(panels, norms, strict=True):
        axes.set_xlabel("eps (of 255)" if norm == "Linf" else f"eps ({norm} norm)")
        axes.margins(x=0.03)
        if len(curves) > 1:
            axes.legend()
    percent_axis(panels[0], "top-1 accuracy, worst case (%)", tops)
    footnote(fig, "Whiskers: 95 % Wilson intervals. At 0: clean.")
    fig.suptitle(literal(title))
    return fig


def draw_curve(axes: Axes, curve: Curve, label: str, index: int) -> list[float]:
    """One network's accuracies with their intervals. Returns where they reach to."""
    style, norm = line_style(index), curve[0].conditions.norm
    radii = [0.0, *(float(length_number(r.conditions.eps, norm)) for r in curve)]
    accuracies: list[Accuracy] = [curve[0].clean.top1, *(r.worst_case.top1 for r in curve)]
    lows, highs = zip(*(a.estimate.whiskers for a in accuracies), strict=True)
    for ends in zip(radii, lows, highs, strict=True):
        axes.vlines(*ends, color=style["color"], linewidth=0.9)
    axes.plot(radii, [a.percent for a in accuracies], label=label, **style)
    return list(highs)
