"""What all figures share: style, colours, saving, and short names for runs.

Figures are made of `matplotlib.figure.Figure` alone: no pyplot, no window, no display needed.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from utils.errors import UserError
from utils.storage.files import make_folder, replacing
from utils.text import printable

# Okabe & Ito's palette, told apart under every common colour blindness; line styles and markers
# say the same a second time, for print in grey. The yellow is left out: too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (3, 3)))
GREY = "#444444"
# What runs are called, by the part of the folder's name that says how they were trained.
LABELS = {"free_adv": "FreeAT", "fast_adv": "FastAT", "pgd_adv": "PGD-AT", "natural": "natural"}
WIDTH = 5.5  # inches, of the text of a paper: set so, the fonts have the sizes below
# Fonts of Chinese, Japanese and Korean, in the names of classes; those that there are.
CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Hiragino Sans", "Microsoft YaHei", "Malgun Gothic")
INSTALLED = {font.name for font in fontManager.ttflist}
STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif", *(name for name in CJK if name in INSTALLED)],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "figure.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "lines.linewidth": 1.3,
    "lines.markersize": 3.8,
    "lines.markeredgewidth": 0.8,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 250,
}

applied = matplotlib.rc_context(STYLE)  # decorator: the style holds inside the function alone


def save_figure(fig: Figure, stem: Path, title: str = "") -> list[Path]:
    """Write `stem.png` and `stem.pdf`; an ending .png or .pdf of `stem` is dropped."""
    # Not with_suffix: a stem such as `s10.0_margin0.2` has no suffix to replace.
    folder, name = stem.parent, re.sub(r"\.(png|pdf)$", "", stem.name, flags=re.I)
    make_folder(folder)
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # drawn as boxes then
        if title:
            fig.suptitle(literal(title))
        usual = fig.dpi
        fig.set_dpi(STYLE["savefig.dpi"])  # on which the widths of letters depend
        fig.draw_without_rendering()
        whole = Bbox.union([fig.bbox_inches, fig.get_tightbbox().padded(0.02)])  # no text is cut
        fig.set_dpi(usual)
        fig.draw_without_rendering()  # a first layout does not know how wide all labels become
        # No date inside the files: the same numbers give the same bytes.
        for path, metadata in zip(paths, ({"Software": None}, {"CreationDate": None}), strict=True):
            with replacing(path) as file:
                fig.savefig(file, format=path.suffix[1:], metadata=metadata, bbox_inches=whole)
    return paths


def point(index: int) -> dict[str, Any]:
    """Colour and marker of the run with this index."""
    turn, colour = divmod(index, len(COLOURS))
    marker = MARKERS[(colour + turn) % len(MARKERS)]  # another one with each turn of the colours
    return {"color": COLOURS[colour], "marker": marker, "linestyle": "none"}


def curve(index: int) -> dict[str, Any]:
    """Colour, marker and line of the curve with this index."""
    return {**point(index), "linestyle": LINES[index % len(LINES)]}


def marked(look: Mapping[str, Any], warned: bool) -> dict[str, Any]:
    """A point's style, hollow where its evaluation came with a warning."""
    return {**look, "markerfacecolor": "white"} if warned else dict(look)


def legend_handles(looks: Mapping[str, dict[str, Any]], any_warned: bool = False) -> list[Line2D]:
    """Legend entries by label, and what a hollow point is where there is one."""
    if any_warned:
        hollow = {"color": GREY, "marker": "o", "linestyle": "none", "markerfacecolor": "white"}
        looks = {**looks, "hollow: evaluated with a warning": hollow}
    return [Line2D([], [], label=literal(label), **look) for label, look in looks.items()]


def footnote(fig: Figure, text: str) -> None:
    """A line below everything."""
    fig.supxlabel(text, fontsize=7, color=GREY)


def percent_axis(axes: Axes, label: str, values: Sequence[float]) -> None:
    """A vertical axis of percents from 0, with room above the largest value."""
    axes.set_ylim(0, min(102.0, 1.15 * max([*values, 1.0])))
    axes.set_ylabel(label)


def literal(text: str) -> str:
    """Text that others have written, for a figure: nothing in it is a formula."""
    return printable(text).replace("$", r"\$")


def run_label(name: str) -> str:
    """A legend's name for a run folder: `FreeAT + HE (s = 10, m = 0.2)`; others as they are."""
    match = re.fullmatch(
        rf"[a-z0-9_]+?_({'|'.join(LABELS)})(?:_step.*?)?_bs\d+((?:_FN)?(?:_WN)?)"
        r"(?:_s([\d.]+)_margin([\d.]+))?(?:_seed(\d+))?",
        name,
    )
    if match is None:
        return name
    method, flags, scale, margin, seed = match.groups()
    label = LABELS[method]
    if scale:
        head = flags.replace("_FN_WN", "_HE")[1:]
        label += f" + {head} (s = {float(scale):g}, m = {float(margin):g})"
    return label + (f", seed {seed}" if seed else "")


def label_of_seeds(label: str, seeds: int) -> str:
    """A run's label without its seed, where it stands for several."""
    return re.sub(r"(, seed |_seed)\d+", "", label) + f", {seeds} seeds" if seeds > 1 else label


def run_labels(paths: Sequence[Path], given: Sequence[str] | None = None) -> list[str]:
    """One distinct name per run: those given, else short names, else folder names, else paths."""
    if given is not None:
        if len(set(given)) == len(given) == len(paths):
            return list(given)
        rows = ", ".join("/".join(path.parts[-2:]) for path in paths)
        listed = ", ".join(given)
        raise UserError(
            f"{len(given)} names ({listed}) for {len(paths)} rows ({rows}); give each row its own"
        )
    folders = [path.resolve() if path.is_dir() else path.resolve().parent for path in paths]
    for names in (
        [run_label(folder.name) for folder in folders],
        [folder.name for folder in folders],
        [f"{folder.name}/{path.stem}" for folder, path in zip(folders, paths, strict=True)],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
