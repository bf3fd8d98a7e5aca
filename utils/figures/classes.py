"""The figure of single classes: the least and the most robust ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures.style import COLOURS, GREY, WIDTH, handles_of, literal, shortened, styled
from utils.storage.accuracy import Accuracy
from utils.storage.csv_rows import Rows, read_rows, series

AT_EACH_END = 10
LETTERS = 24  # of a class's name
LOOKS: dict[str, dict[str, Any]] = {
    "clean": {"linestyle": "none", "marker": "o", "color": COLOURS[5]},
    "worst case": {"linestyle": "none", "marker": "s", "color": COLOURS[0]},
}


def read_classes(path: Path) -> list[dict[str, str]]:
    """The rows of attack_*_classes.csv.

    Raises:
        UserError: there is no such file, or it is another one.
    """
    columns = ("class", "n", "clean_correct", "robust", "most_frequent_wrong_answer")
    return read_rows(path, columns, "evaluate with -e")


@styled
def classes(rows: Rows, title: str = "") -> Figure:
    """Clean and worst-case accuracy of the ten least and the ten most robust classes.

    Args:
        rows: of attack_*_classes.csv.
    """
    shares = dict(zip(range(len(rows)), series(rows, "robust_accuracy"), strict=True))
    order = [rows[index] for index in sorted(shares, key=lambda index: shares[index])]
    parts = {
        "least robust classes": order[:AT_EACH_END],
        "most robust classes": order[::-1][:AT_EACH_END],
    }
    if len(order) <= 2 * AT_EACH_END:
        parts = {"classes by robustness": order}
    sizes = [len(part) for part in parts.values()]
    fig = Figure(figsize=(WIDTH, 0.17 * sum(sizes) + 0.3 * len(parts) + 0.95), layout="constrained")
    panels = fig.subplots(len(parts), 1, sharex=True, height_ratios=sizes, squeeze=False)[:, 0]
    for axes, (name, part) in zip(panels, parts.items(), strict=True):
        draw_classes(axes, part)
        axes.set_title(name, loc="left")
    panels[-1].set_xlabel("top-1 accuracy (%); whiskers: 95 % Wilson intervals")
    handles = handles_of(LOOKS, LOOKS.values())
    handles += handles_of(["right: most frequent wrong answer"], [{"linestyle": "none"}])
    fig.legend(handles=handles, loc="outside lower center", ncols=3, handletextpad=0.2)
    fig.suptitle(literal(title))
    return fig


def draw_classes(axes: Axes, rows: Sequence[Mapping[str, str]]) -> None:
    """A line for each class, from top to bottom."""
    for y, row in enumerate(rows):
        for name, column in (("clean", "clean_correct"), ("worst case", "robust")):
            accuracy = Accuracy(int(row[column]), int(row["n"]))
            shift = -0.14 if name == "clean" else 0.14
            whiskers = accuracy.estimate.whiskers
            axes.hlines(y + shift, *whiskers, color=LOOKS[name]["color"], linewidth=0.8)
            axes.plot(accuracy.percent, y + shift, **LOOKS[name])
        if answer := row["most_frequent_wrong_answer"]:
            axes.text(103, y, shortened(answer, LETTERS), va="center", fontsize=7, color=GREY)
    axes.set_yticks(range(len(rows)), [shortened(row["class"], LETTERS) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-1, 101)
