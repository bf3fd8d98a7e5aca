"""Figures of a training run: its curves, and the ratio of adversarial to clean gradients."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from utils.errors import UserError
from utils.figures.style import COLOURS, LINES, MARKERS, percent_axis, styled

Rows = Sequence[Mapping[str, str]]
GRADIENT_GROUPS = {"conv": "convolutions", "bn": "batch-norm", "fc": "last layer"}


def read_rows(path: str | Path, columns: Sequence[str], hint: str) -> list[dict[str, str]]:
    """A CSV file's rows.

    Args:
        path: the file.
        columns: headers that it must have.
        hint: how such a file comes about, for the error.

    Raises:
        UserError: no such file, no rows, or other columns.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read {path}: {reason}; {hint}") from error
    if not rows:
        raise UserError(f"{path} has no rows yet; {hint}")
    absent = [name for name in columns if name not in rows[0]]
    if absent:
        raise UserError(f"{path} has no column {', '.join(absent)}; {hint}")
    return rows


def series(rows: Rows, column: str) -> list[float]:
    """A column as numbers; an empty field is not drawn (nan).

    Raises:
        UserError: a field that is no number.
    """
    try:
        return [float(row.get(column) or "nan") for row in rows]
    except ValueError as error:
        raise UserError(
            f"the column {column} holds something else than numbers: {error}"
        ) from error


def read_metrics(run: str | Path) -> list[dict[str, str]]:
    """The rows of a run folder's metrics.csv, one per epoch."""
    columns = ("epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1")
    return read_rows(Path(run) / "metrics.csv", columns, "give a run folder with a finished epoch")


@styled
def training_curves(rows: Rows, title: str = "") -> Figure:
    """Loss, top-1 and learning rate over the epochs.

    Args:
        rows: of metrics.csv: epoch (from 1), lr, train_loss, train_top1, val_loss, val_top1 and,
            where the best model is chosen by it, val_pgd_top1; accuracies in percent.
        title: above the figure, for example the run's name.
    """
    fig = Figure(figsize=(9, 3.1), layout="constrained")
    loss, accuracy, rate = fig.subplots(1, 3, width_ratios=(1, 1, 0.75))
    epochs = series(rows, "epoch")
    curves = [("train_loss", "training (adversarial)"), ("val_loss", "validation (clean)")]
    draw_curves(loss, rows, curves)
    loss.set_ylabel("loss (cross-entropy, nats)")
    loss.legend()
    curves = [("train_top1", "training (adversarial)"), ("val_top1", "validation (clean)")]
    curves += [("val_pgd_top1", "validation (PGD-10)")]
    values = draw_curves(accuracy, rows, curves)
    percent_axis(accuracy, "top-1 accuracy (%)", values)
    accuracy.legend()
    draw_rate(rate, epochs, series(rows, "lr"))
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    fig.suptitle(title, fontsize=10)
    return fig


def draw_rate(axes: Axes, epochs: Sequence[float], rates: Sequence[float]) -> None:
    """The learning rate's steps on a logarithmic axis, with ticks at its own values."""
    axes.step(epochs, rates, where="mid", color=COLOURS[6])
    if len(epochs) == 1:
        axes.plot(epochs, rates, "o", color=COLOURS[6])
    axes.set_yscale("log")
    if len(set(rates)) <= 6 and min(rates) > 0:
        axes.set_ylim(min(rates) / 2, max(rates) * 2)
        axes.set_yticks(sorted(set(rates)), [f"{rate:.3g}" for rate in sorted(set(rates))])
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("learning rate")


def draw_curves(axes: Axes, rows: Rows, curves: Sequence[tuple[str, str]]) -> list[float]:
    """Draw the columns that hold numbers, and return every value drawn."""
    epochs = series(rows, "epoch")
    drawn = []
    for place, (column, label) in enumerate(curves):
        values = series(rows, column)
        present = [value for value in values if not math.isnan(value)]
        if not present:
            continue
        drawn += present
        (line,) = axes.plot(epochs, values, color=COLOURS[place], label=label)
        line.set(linestyle=LINES[place], marker=MARKERS[place] if len(epochs) <= 40 else None)
    return drawn


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
        title: above the figure.
    """
    fig = Figure(figsize=(9, 3.7), layout="constrained")
    panels = fig.subplots(1, 3, sharey=True, width_ratios=(1, 1, 0.42))
    for axes, (group, name) in zip(panels, GRADIENT_GROUPS.items(), strict=True):
        axes.axhline(1, color="#444444", linewidth=1.3, zorder=1.5)
        for place, rows in enumerate(runs.values()):
            # One layer alone: side by side, or the runs would hide each other.
            shift = 0.25 * (place - (len(runs) - 1) / 2) if group == "fc" else 0.0
            draw_ratios(axes, [row for row in rows if row["group"] == group], place, shift)
        axes.margins(x=0.6 if group == "fc" else 0.04)
        axes.set_title(name)
        axes.set_xlabel("depth (layer)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=7))
    ratio_axis(panels[0], [value for rows in runs.values() for value in series(rows, "ratio")])
    every = [row for rows in runs.values() for row in rows]
    handles = [*run_handles(list(runs)), *kind_handles({kind(row) for row in every})]
    fig.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
    fig.suptitle(title, fontsize=10)
    return fig


def kind(row: Mapping[str, str]) -> str:
    """How a parameter is drawn: `weight`, `bias`, `downsample`, or `all` for a whole group."""
    name = row["parameter"]
    if name == "all":
        return "all"
    if "downsample" in name:
        return "downsample"
    return "bias" if name.endswith(".bias") else "weight"


KIND_STYLES: dict[str, dict[str, Any]] = {
    "weight": {"linestyle": "-", "linewidth": 1.3, "fillstyle": "full"},
    "bias": {"linestyle": ":", "linewidth": 1.3, "fillstyle": "none"},
    # Shortcuts lie beside the main path, so no line leads through them.
    "downsample": {"linestyle": "none", "fillstyle": "left"},
}


def draw_ratios(axes: Axes, rows: Rows, place: int, shift: float) -> None:
    """One run's ratios in one group's panel; the legend says the whole group's ratio.

    Args:
        rows: of this group.
        place: the run's, among the runs.
        shift: of the points to the right, in layers.
    """
    marks: dict[str, Any] = {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
    }
    for name, style in KIND_STYLES.items():
        members = [row for row in rows if kind(row) == name]
        members.sort(key=lambda row: float(row["depth"]))
        depths = [depth + shift for depth in series(members, "depth")]
        axes.plot(depths, series(members, "ratio"), **marks, **style)
    whole = series([row for row in rows if kind(row) == "all"], "ratio")
    if whole:
        axes.plot([], [], linestyle="none", label=f"{whole[0]:.2f}", **marks)
        axes.legend(title="whole group", title_fontsize=8, handletextpad=0.2, alignment="left")


def run_handles(labels: Sequence[str]) -> list[Line2D]:
    """Legend entries of the runs."""
    return [
        Line2D(
            [],
            [],
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            label=label,
        )
        for place, label in enumerate(labels)
    ]


def kind_handles(kinds: set[str]) -> list[Line2D]:
    """Legend entries of the kinds of parameter that are drawn, in grey, and of the line at 1."""
    names = {"weight": "weight", "bias": "bias", "downsample": "shortcut (downsample)"}
    handles = [
        Line2D([], [], color="#777777", marker="o", label=names[name], **style)
        for name, style in KIND_STYLES.items()
        if name in kinds
    ]
    return [*handles, Line2D([], [], color="#444444", linewidth=1.3, label="equal norms")]


def ratio_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis, so that 2 and 1/2 are equally far from 1, with plain numbers on it."""
    finite = [value for value in values if 0 < value < float("inf")] + [1.0]
    low, high = min(finite) / 1.15, max(finite) * 1.25
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    steps: tuple[float, ...] = (1,)
    if high / low < 3:
        steps = (1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    elif high / low < 1000:
        steps = (1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1, 2, 5)
    ticks = [step * 10.0**power for power in range(-8, 9) for step in steps]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("gradient norm, adversarial / clean")
