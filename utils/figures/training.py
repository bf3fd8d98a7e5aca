"""The figure of a training: loss, accuracy and learning rate over the epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from utils.figures.csv_rows import Rows, read_rows, series
from utils.figures.style import COLOURS, WIDTH, line_style, literal, percent_axis, styled


def read_metrics(run: str | Path) -> list[dict[str, str]]:
    """The rows of a run folder's metrics.csv, one per epoch."""
    columns = ("epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1")
    return read_rows(Path(run) / "metrics.csv", columns, "give a run folder with a finished epoch")


@styled
def training_curves(rows: Rows, title: str = "", margin: bool = False) -> Figure:
    """Loss with the learning rate below it, and top-1, over the epochs.

    Args:
        rows: of metrics.csv: epoch (from 1), lr, train_loss, train_top1, val_loss, val_top1 and,
            where the best model is chosen by it, val_pgd_top1; accuracies in percent.
        title: above the figure, for example the run's name.
        margin: the training's loss has HE's margin, so it is no cross-entropy of the outputs.
    """
    rates = series(rows, "lr")
    strip = len(set(rates)) > 1  # a constant rate is written, not drawn
    fig = Figure(figsize=(WIDTH, 2.8 if strip else 2.4), layout="constrained")
    mosaic: Any = [["loss", "accuracy"], ["rate", "accuracy"]][: 1 + strip]
    panels = fig.subplot_mosaic(mosaic, height_ratios=(3.6, 1) if strip else (1,))
    labels = ("training: adversarial images", "validation: clean images", "validation: PGD-10")
    draw_curves(panels["loss"], rows, ("train_loss", "val_loss"), labels)
    of_training = "\ntraining: with HE's margin" if margin else ""
    panels["loss"].set_ylabel(f"{'loss' if margin else 'cross-entropy'} (nats){of_training}")
    columns = ("train_top1", "val_top1", "val_pgd_top1")
    values = draw_curves(panels["accuracy"], rows, columns, labels)
    percent_axis(panels["accuracy"], "top-1 accuracy (%)", values)
    if strip:
        draw_rate(panels["rate"], series(rows, "epoch"), rates)
        panels["loss"].sharex(panels["rate"])
        panels["loss"].tick_params(labelbottom=False)
    for name, axes in panels.items():
        if name != "loss" or not strip:
            axes.set_xlabel("epoch" if strip else f"epoch (learning rate {rates[0]:.3g})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=6))
    handles = panels["accuracy"].get_lines()
    fig.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.2)
    fig.suptitle(literal(title))
    return fig


def draw_rate(axes: Axes, epochs: Sequence[float], rates: Sequence[float]) -> None:
    """The learning rate at each epoch's end: steps on a logarithmic axis, or a curve."""
    if len(set(rates)) > 4 or min(rates) <= 0:
        axes.plot(epochs, rates, color=COLOURS[6], linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("lr")
        return
    axes.step(epochs, rates, where="mid", color=COLOURS[6], linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(min(rates) / 2, max(rates) * 2)
    axes.set_yticks(sorted(set(rates)), [f"{rate:.3g}" for rate in sorted(set(rates))])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("lr (log)")


def draw_curves(
    axes: Axes, rows: Rows, columns: Sequence[str], labels: Sequence[str]
) -> list[float]:
    """Draw the columns that hold numbers, and return every value drawn."""
    epochs = series(rows, "epoch")
    drawn = []
    for index, (column, label) in enumerate(zip(columns, labels, strict=False)):
        values = series(rows, column)
        present = [value for value in values if not math.isnan(value)]
        if present:
            drawn += present
            style = line_style(index) | ({"marker": None} if len(epochs) > 40 else {})
            axes.plot(epochs, values, label=label, **style)
    return drawn
