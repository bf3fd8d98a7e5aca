"""The figures of a training: its curves over the epochs, and gradient norms layer by layer."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from utils.errors import UserError
from utils.figures import style
from utils.storage.files import CsvRows, read_csv, series
from utils.storage.results import mean_over_seeds
from utils.storage.run_folder import run_settings

# By group of parameters: the panel's title and what its axis counts.
GROUPS = {
    "conv": ("convolutions", "convolution, from the input"),
    "bn": ("batch-norm", "batch-norm layer, from the input"),
    "fc": ("last layer", ""),
}
PARAMETER_STYLES: dict[str, dict[str, Any]] = {
    "weight": {"linestyle": "-", "linewidth": 0.9, "markersize": 2.8},
    "bias": {"linestyle": ":", "linewidth": 0.9, "markersize": 2.8, "fillstyle": "none"},
    # Shortcuts lie beside the main path, so no line leads through them.
    "shortcut (downsample)": {"linestyle": "none", "fillstyle": "left"},
}
EQUAL: dict[str, Any] = {"color": style.GREY, "linewidth": 1.1}  # the line at ratio 1


def draw_run(folder: Path) -> None:
    """Training curves, and gradient ratios where they have been measured, as PNG and PDF."""
    style.save_figure(training_curves(folder), folder / "training_curves")
    if (folder / "gradient_norms.csv").exists():
        rows = read_gradients(folder)
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


def read_gradients(run: str | Path, epoch: int | None = None) -> list[dict[str, str]]:
    """The rows of one epoch of a run folder's gradient_norms.csv, the last by default."""
    columns = ("epoch", "parameter", "group", "depth", "ratio")
    path = Path(run) / "gradient_norms.csv"
    rows = read_csv(path, columns, "train with --print_gradients True")
    epochs = series(rows, "epoch")
    wanted = max(epochs) if epoch is None else epoch
    if wanted not in epochs:
        raise UserError(f"{path} has epochs {min(epochs):g} to {max(epochs):g}, not {wanted}")
    return [row for row, its in zip(rows, epochs, strict=True) if its == wanted]


def mean_of_seeds(seeds: Sequence[CsvRows]) -> CsvRows:
    """The rows with the mean ratio over runs of several seeds, and its standard deviation."""
    if len(seeds) == 1:
        return seeds[0]
    if len({tuple((row["epoch"], row["parameter"]) for row in rows) for rows in seeds}) > 1:
        raise UserError("runs of several seeds have other last epochs or layers; give --epoch")
    means = []
    for same in zip(*seeds, strict=True):
        over = mean_over_seeds(series(same, "ratio"))
        means.append({**same[0], "ratio": str(over.percent), "deviation": str(over.spread)})
    return means


@style.applied
def gradient_ratio(runs: Mapping[str, CsvRows]) -> Figure:
    """Ratio of adversarial to clean gradient norms against depth: arXiv:2002.08619, Figure 6."""
    fig = Figure(figsize=(style.WIDTH, 3.1), layout="constrained")
    panels = fig.subplots(1, 3, sharey=True, width_ratios=(1, 1, 0.55))
    for axes, (group, (name, axis)) in zip(panels, GROUPS.items(), strict=True):
        axes.axhline(1, zorder=1.5, **EQUAL)
        for index, rows in enumerate(runs.values()):
            # One layer alone: side by side, or the runs would hide each other.
            shift = 0.25 * (index - (len(runs) - 1) / 2) if group == "fc" else 0.0
            its = [row for row in rows if row["group"] == group]
            draw_ratios(axes, its, style.point(index), shift)
        axes.margins(x=0.6 if group == "fc" else 0.04)
        axes.set_title(name)
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=6))
    panels[2].set_xticks([])
    ratios = [value for rows in runs.values() for value in series(rows, "ratio")]
    finite = [value for value in ratios if 0 < value < float("inf")] + [1.0]
    panels[0].set(yscale="log", ylim=(min(finite) / 1.15, max(finite) * 1.25))
    panels[0].set_ylabel("gradient norm,\nadversarial / clean (log scale)")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_locator(NullLocator())
    drawn = {parameter_type(row) for rows in runs.values() for row in rows}
    common = {"color": "grey", "marker": "o"}
    types = {t: common | look for t, look in PARAMETER_STYLES.items() if t in drawn}
    handles = style.legend_handles({label: style.point(index) for index, label in enumerate(runs)})
    handles += style.legend_handles(types | {"equal norms": EQUAL})
    epochs = sorted({row["epoch"] for rows in runs.values() for row in rows}, key=float)
    note = f"Epoch {' and '.join(epochs)}."
    if any("deviation" in row for rows in runs.values() for row in rows):
        note += " Bands and bars: ± one standard deviation over the seeds (n - 1)."
    fig.legend(handles=handles, loc="outside lower center", ncols=3, title=note)
    return fig


def parameter_type(row: Mapping[str, str]) -> str:
    """How a parameter is drawn: a key of PARAMETER_STYLES, or `all` for a whole group."""
    name = row["parameter"]
    if "downsample" in name:
        return "shortcut (downsample)"
    return "all" if name == "all" else "bias" if name.endswith(".bias") else "weight"


def draw_ratios(axes: Axes, rows: CsvRows, run: dict[str, Any], shift: float) -> None:
    """One run's ratios in one group's panel, in its style; the legend says the whole group's."""
    members = {name: [r for r in rows if parameter_type(r) == name] for name in PARAMETER_STYLES}
    depths = sorted(set(series([*members["weight"], *members["bias"]], "depth")))
    for name, parameter in PARAMETER_STYLES.items():
        numbers = [bisect_right(depths, d) + shift for d in series(members[name], "depth")]
        ratios, deviations = (series(members[name], column) for column in ("ratio", "deviation"))
        axes.plot(numbers, ratios, **run | parameter)
        if not all(map(math.isnan, deviations)):
            pairs = list(zip(ratios, deviations, strict=True))
            ends = [max(r - d, r / 100) for r, d in pairs], [r + d for r, d in pairs]
            colour = run["color"]
            if parameter["linestyle"] == "none" or len(pairs) == 1:
                axes.vlines(numbers, *ends, color=colour, linewidth=0.6)
            else:
                axes.fill_between(numbers, *ends, color=colour, alpha=0.15, linewidth=0)
    for row in (row for row in rows if parameter_type(row) == "all"):
        spread = f" ± {float(row['deviation']):.2f}" if "deviation" in row else ""
        axes.plot([], [], label=f"{float(row['ratio']):.2f}{spread}", **run)
        axes.legend(title="whole group", title_fontsize=7.5, handletextpad=0.2, alignment="left")
