"""The figure of gradient norms: adversarial over clean, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from utils.errors import UserError
from utils.figures.style import GREY, WIDTH, handles_of, literal, marker_style, styled
from utils.storage.csv_rows import Rows, read_rows, series

# By group: the panel's title and what its axis counts.
GROUPS = {
    "conv": ("convolutions", "convolution"),
    "bn": ("batch-norm", "batch-norm layer"),
    "fc": ("last layer", ""),
}
# Ticks within a power of ten, for axes whose ends have less than a ratio.
TICKS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (3, (1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)),
    (30, (1, 1.5, 2, 3, 5, 7)),
    (1000, (1, 2, 5)),
    (float("inf"), (1,)),
)
EQUAL: dict[str, Any] = {"color": GREY, "linewidth": 1.1}  # the line at ratio 1


def read_gradient_norms(run: str | Path, epoch: int | None = None) -> list[dict[str, str]]:
    """The rows of one epoch of a run folder's gradient_norms.csv, the last by default.

    Raises:
        UserError: no such file or epoch.
    """
    columns = ("epoch", "parameter", "group", "depth", "ratio")
    path = Path(run) / "gradient_norms.csv"
    rows = read_rows(path, columns, "train with --print_gradients True")
    epochs = series(rows, "epoch")
    wanted = max(epochs) if epoch is None else epoch
    if wanted not in epochs:
        raise UserError(f"{path} has epochs {min(epochs):g} to {max(epochs):g}, not {wanted}")
    return [row for row, its in zip(rows, epochs, strict=True) if its == wanted]


@styled
def gradient_ratio(runs: Mapping[str, Rows], title: str = "") -> Figure:
    """Ratio of adversarial to clean gradient norms against depth, per group of parameters.

    Figure 6 of arXiv:2002.08619, with every parameter shown: colour and marker say the run, line
    and filling the kind of parameter. Each panel's legend holds the whole group's ratio.

    Args:
        runs: {label: rows of gradient_norms.csv, of one epoch}.
    """
    fig = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    panels = fig.subplots(1, 3, sharey=True, width_ratios=(1, 1, 0.42))
    for axes, (group, (name, counted)) in zip(panels, GROUPS.items(), strict=True):
        axes.axhline(1, zorder=1.5, **EQUAL)
        for index, rows in enumerate(runs.values()):
            # One layer alone: side by side, or the runs would hide each other.
            shift = 0.25 * (index - (len(runs) - 1) / 2) if group == "fc" else 0.0
            draw_ratios(axes, [row for row in rows if row["group"] == group], index, shift)
        axes.margins(x=0.6 if group == "fc" else 0.04)
        axes.set_title(name)
        axes.set_xlabel(f"{counted}, from the input" if counted else "")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=6))
        if group == "fc":
            axes.set_xticks([])
    ratio_axis(panels[0], [value for rows in runs.values() for value in series(rows, "ratio")])
    every = [row for rows in runs.values() for row in rows]
    handles = handles_of(runs, map(marker_style, range(len(runs))))
    handles += kind_handles({parameter_kind(row) for row in every})
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    fig.suptitle(literal(title))
    return fig


def parameter_kind(row: Mapping[str, str]) -> str:
    """How a parameter is drawn: `weight`, `bias`, `downsample`, or `all` for a whole group."""
    name = row["parameter"]
    if name == "all":
        return "all"
    if "downsample" in name:
        return "downsample"
    return "bias" if name.endswith(".bias") else "weight"


KIND_STYLES: dict[str, dict[str, Any]] = {
    "weight": {"linestyle": "-", "linewidth": 0.9, "fillstyle": "full", "markersize": 2.8},
    "bias": {"linestyle": ":", "linewidth": 0.9, "fillstyle": "none", "markersize": 2.8},
    # Shortcuts lie beside the main path, so no line leads through them.
    "downsample": {"linestyle": "none", "fillstyle": "left"},
}


def draw_ratios(axes: Axes, rows: Rows, index: int, shift: float) -> None:
    """One run's ratios in one group's panel; the legend says the whole group's ratio.

    Args:
        rows: of this group.
        index: of the run, among the runs.
        shift: of the points to the right, in layers.
    """
    marks = marker_style(index)
    for name, style in KIND_STYLES.items():
        members = [row for row in rows if parameter_kind(row) == name]
        members.sort(key=lambda row: float(row["depth"]))
        numbers = [number + shift for number in layer_numbers(members, rows)]
        axes.plot(numbers, series(members, "ratio"), **marks, **style)
    whole = series([row for row in rows if parameter_kind(row) == "all"], "ratio")
    if whole:
        axes.plot([], [], linestyle="none", label=f"{whole[0]:.2f}", **marks)
        axes.legend(title="whole group", title_fontsize=7.5, handletextpad=0.2, alignment="left")


def layer_numbers(members: Rows, group: Rows) -> list[int]:
    """The number of each row's layer among the group's layers of the main path, from 1.

    A shortcut has that of the last one in its block, beside which it lies.
    """
    main = [row for row in group if parameter_kind(row) in ("weight", "bias")]
    depths = sorted(set(series(main, "depth")))
    numbers = []
    for row in members:
        block, _, is_shortcut = row["parameter"].partition("downsample")
        beside = [other for other in main if other["parameter"].startswith(block)]
        depth = max(series(beside or main, "depth")) if is_shortcut else float(row["depth"])
        numbers.append(depths.index(depth) + 1)
    return numbers


def kind_handles(kinds: set[str]) -> list[Line2D]:
    """Legend entries of the kinds of parameter that are drawn, in grey, and of the line at 1."""
    names = {"weight": "weight", "bias": "bias", "downsample": "shortcut (downsample)"}
    shown = [name for name in KIND_STYLES if name in kinds]
    styles = [{"color": "#777777", "marker": "o", **KIND_STYLES[name]} for name in shown]
    return handles_of([*(names[n] for n in shown), "equal norms"], [*styles, EQUAL])


def ratio_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis, so that 2 and 1/2 are equally far from 1, with plain numbers on it."""
    finite = [value for value in values if 0 < value < float("inf")] + [1.0]
    low, high = min(finite) / 1.15, max(finite) * 1.25
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    steps = next(steps for reach, steps in TICKS if high / low < reach)
    ticks = [step * 10.0**power for power in range(-8, 9) for step in steps]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("gradient norm,\nadversarial / clean (log scale)")
