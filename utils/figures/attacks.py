"""The figure of attacked images: original, perturbation and adversarial image side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures import style

SIDE = style.WIDTH / 6.5  # inches of an image: two triples beside each other, and gaps
LETTERS = 14  # that fit below an image


@dataclass(frozen=True)
class AttackedImage:
    """One image and what became of it."""

    clean: Any  # (3, H, W) pixels in [0, 1], array or CPU tensor
    adversarial: Any
    label: str  # name of the true class
    before: str  # of the class predicted on the clean image
    after: str
    attack: str


@style.applied
def attack_images(images: Sequence[AttackedImage], max_change: float, title: str) -> Figure:
    """Images, their perturbations, and what becomes of them; a change of `max_change` is white."""
    across = min(2, len(images))
    rows = -(-len(images) // across)
    widths = ([1, 1, 1, 0.12] * across)[:-1]  # the gap between two triples is a column of its own
    size = (SIDE * (sum(widths) + 0.3), (SIDE + 0.36) * rows + 0.55)
    fig = Figure(figsize=size)
    fig.set_layout_engine("constrained", w_pad=0.02, h_pad=0.03, wspace=0, hspace=0.02)
    grid = fig.subplots(rows, len(widths), width_ratios=widths, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, image in enumerate(images):
        row, column = index // across, 4 * (index % across)
        draw_triple(list(grid[row, column : column + 3]), image, max_change)
    captions = ("original", f"change, ±{255 * max_change:.3g}/255", "adversarial", "")
    for column, axes in enumerate(grid[0]):
        axes.set_title(captions[column % 4], fontsize=7.5)
    note = "Below: true class, attack, and the classes predicted (✓ right, ✗ wrong)."
    style.footnote(fig, f"{note} Grey is no change.")
    fig.suptitle(style.literal(title), fontsize=8.5)
    return fig


def draw_triple(panels: Sequence[Axes], image: AttackedImage, max_change: float) -> None:
    """An image, its change, and the adversarial image, with what they are below."""
    clean, adversarial = (
        np.moveaxis(np.asarray(x, float), 0, 2) for x in (image.clean, image.adversarial)
    )
    change = 0.5 + (adversarial - clean) / (2 * max_change)
    captions = (
        prediction_caption(image.before, image.label),
        (f"{shortened(image.label)}\n{style.literal(image.attack)}", "black"),
        prediction_caption(image.after, image.label),
    )
    pixels = (clean, change, adversarial)
    for axes, values, (text, colour) in zip(panels, pixels, captions, strict=True):
        axes.imshow(np.clip(values, 0, 1), interpolation="nearest")
        axes.set_axis_on()
        axes.grid(visible=False)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(text, color=colour, fontsize=7, labelpad=2)


def prediction_caption(prediction: str, label: str) -> tuple[str, str]:
    """The predicted class with a sign for right or wrong, and a colour that says the same."""
    sign, colour = ("✓", style.COLOURS[2]) if prediction == label else ("✗", style.COLOURS[1])
    return f"{sign} {shortened(prediction)}", colour


def shortened(name: str) -> str:
    """A class's name, as much as fits below an image."""
    return style.literal(name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…")
