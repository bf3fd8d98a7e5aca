"""The figure of attacked images: original, perturbation and adversarial image side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures.style import COLOURS, WIDTH, footnote, literal, shortened, styled

RIGHT, WRONG = COLOURS[2], COLOURS[1]
ACROSS = 2  # triples of images beside each other
LETTERS = 14  # that fit below an image


@dataclass(frozen=True)
class AttackedImage:
    """One image and what became of it.

    Attributes:
        clean, adversarial: (3, H, W) pixels in [0, 1], arrays or CPU tensors.
        label: name of the true class.
        before, after: names of the classes predicted on the two.
        attack: name of the attack.
    """

    clean: Any
    adversarial: Any
    label: str
    before: str
    after: str
    attack: str


@styled
def attack_images(images: Sequence[AttackedImage], reach: float, title: str) -> Figure:
    """Images, their perturbations scaled so that `reach` fills the range, and what becomes of them.

    Args:
        reach: change of a pixel in [0, 1] that is drawn white; its opposite is black, none grey.
        title: above the figure.
    """
    across = min(ACROSS, len(images))
    rows = -(-len(images) // across)
    # The gap between two triples is a column of its own.
    widths = ([1, 1, 1, 0.12] * across)[:-1]
    side = WIDTH / (sum(widths) + 0.3) if across == ACROSS else 1.0
    size = (side * (sum(widths) + 0.3), (side + 0.36) * rows + 0.55)
    fig = Figure(figsize=size)
    fig.set_layout_engine("constrained", w_pad=0.02, h_pad=0.03, wspace=0, hspace=0.02)
    grid = fig.subplots(rows, len(widths), width_ratios=widths, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, image in enumerate(images):
        row, column = index // across, 4 * (index % across)
        panels = list(grid[row, column : column + 3])
        draw_triple(panels, image, reach)
        if row == 0:
            captions = ("original", f"change, ±{255 * reach:.3g}/255", "adversarial")
            for axes, caption in zip(panels, captions, strict=True):
                axes.set_title(caption, fontsize=7.5)
    note = "Below: true class, attack, and the classes predicted (✓ right, ✗ wrong)."
    footnote(fig, f"{note} Grey is no change.")
    fig.suptitle(literal(title), fontsize=8.5)
    return fig


def draw_triple(panels: Sequence[Axes], image: AttackedImage, reach: float) -> None:
    """An image, its change, and the adversarial image, with their captions."""
    clean, adversarial = (
        np.moveaxis(np.asarray(x, float), 0, 2) for x in (image.clean, image.adversarial)
    )
    change = np.clip(0.5 + (adversarial - clean) / (2 * reach), 0, 1)
    for axes, pixels in zip(panels, (clean, change, adversarial), strict=True):
        draw_image(axes, pixels)
    write_prediction(panels[0], image.before, image.label)
    about = f"{shortened(image.label, LETTERS)}\n{literal(image.attack)}"
    panels[1].set_xlabel(about, fontsize=7, labelpad=2)
    write_prediction(panels[2], image.after, image.label)


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """An image (H, W, 3) in [0, 1] with its own pixels, in a thin frame."""
    axes.imshow(np.clip(image, 0, 1), interpolation="nearest")
    axes.set_axis_on()
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.6)


def write_prediction(axes: Axes, prediction: str, truth: str) -> None:
    """What the network says, below the image: a sign as well as a colour for right and wrong."""
    right = prediction == truth
    text = f"{'✓' if right else '✗'} {shortened(prediction, LETTERS)}"
    axes.set_xlabel(text, fontsize=7, color=RIGHT if right else WRONG, labelpad=2)
