"""The figures of a training: loss, accuracy and learning rate over the epochs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.figures import style
from utils.figures.gradients import gradient_ratio, read_gradient_norms
from utils.storage.files import CsvRows, read_csv, series
from utils.storage.run_folder import run_settings


def draw_run(folder: Path) -> None:
    """Training curves, and gradient ratios where they have been measured, as PNG and PDF."""
    style.save_figure(training_curves(folder), folder / "training_curves")
    if (folder / "gradient_norms.csv").exists():
        rows = read_gradient_norms(folder)
        style.save_figure(
            gradient_ratio({style.run_label(folder.name): rows}), folder / "gradient_ratio"
        )


@style.applied
def training_curves(folder: Path) -> Figure:
    """Loss with the learning rate below it, and top-1, over the epochs of a run folder."""
    columns = ("epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1")
    path, hint = folder / "metrics.csv", "give a run folder with a finished epoch"
    rows, settings = read_csv(path, columns, hint), run_settings(folder)
    head = settings.get("HE", {})
    # With it the training's loss is no cross-entropy of the outputs.
    margin = (head.get("FN") or head.get("WN")) and head.get("angular_margin_HE")
    natural = settings.get("TRAIN", {}).get("method") == "natural"
    fig = Figure(figsize=(style.WIDTH, 2.8), layout="constrained")
    mosaic: Any = [["loss", "accuracy"], ["rate", "accuracy"]]
    panels = fig.subplot_mosaic(mosaic, height_ratios=(3.6, 1))
    loss, accuracy, rate = (panels[name] for name in ("loss", "accuracy", "rate"))
    labels = {
        "train": f"training: {'clean' if natural else 'adversarial'} images",
        "val": "validation: clean images",
        "val_pgd": "validation: PGD-10",
        "val_ema": "validation: averaged weights",
        "train_pgd": "a training minibatch: PGD-10",
    }
    draw_curves(loss, rows, "loss", labels)
    loss.set_ylabel("loss (nats)\ntraining: with margin" if margin else "cross-entropy (nats)")
    style.percent_axis(accuracy, "top-1 accuracy (%)", draw_curves(accuracy, rows, "top1", labels))
    rates = series(rows, "lr")
    rate.plot(
        series(rows, "epoch"), rates, color=style.COLOURS[6], drawstyle="steps-mid", linewidth=1
    )
    if min(rates) > 0:
        rate.set_yscale("log")
    ends = sorted({min(rates), max(rates)})
    rate.set_yticks(ends, [f"{end:.3g}" for end in ends])
    rate.minorticks_off()
    rate.set_ylabel("lr")
    rate.margins(y=0.2)
    loss.sharex(rate)
    loss.tick_params(labelbottom=False)
    for axes in (accuracy, rate):
        axes.set_xlabel("epoch (a pass over the data)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=6))
    handles = accuracy.get_lines()
    fig.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.2)
    return fig


def draw_curves(axes: Axes, rows: CsvRows, metric: str, labels: Mapping[str, str]) -> list[float]:
    """Draw the columns that hold numbers, each through the epochs that have one: all values."""
    epochs, drawn = series(rows, "epoch"), []
    for index, (column, label) in enumerate(labels.items()):
        values = series(rows, f"{column}_{metric}")
        points = [point for point in zip(epochs, values, strict=True) if not math.isnan(point[1])]
        if points:
            drawn += [value for _, value in points]
            look = style.curve(index) | ({"marker": None} if len(points) > 40 else {})
            axes.plot(*zip(*points, strict=True), label=label, **look)
    return drawn
