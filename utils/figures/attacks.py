"""The figure of attacked images: original, perturbation and adversarial image side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures.style import COLOURS, styled

RIGHT, WRONG = COLOURS[2], COLOURS[1]
ACROSS = 2  # triples of images beside each other
SIDE = 1.45  # inches


@styled
def attack_images(
    clean: Any,
    adversarial: Any,
    labels: Sequence[str],
    clean_predictions: Sequence[str],
    adversarial_predictions: Sequence[str],
    eps: float,
    title: str = "",
) -> Figure:
    """Images, their perturbations scaled so that eps fills the range, and what becomes of them.

    Args:
        clean: (N, 3, H, W) pixels in [0, 1], an array or a CPU tensor.
        adversarial: the same, after the attack.
        labels: name of each true class.
        clean_predictions: name of the class predicted on each clean image.
        adversarial_predictions: the same on the adversarial images.
        eps: the attack's radius in [0, 1]: grey is no change, black and white are -eps and +eps.
        title: above the figure.
    """
    clean, adversarial = (np.moveaxis(np.asarray(x, float), 1, 3) for x in (clean, adversarial))
    changes = np.clip(0.5 + (adversarial - clean) / (2 * max(eps, 1e-12)), 0, 1)
    across = min(ACROSS, len(clean))
    rows = -(-len(clean) // across)
    # The gap between two triples is a column of its own.
    widths = ([1, 1, 1, 0.15] * across)[:-1]
    height = SIDE * rows * 1.13 + 0.5 + 0.2 * bool(title)
    fig = Figure(figsize=(SIDE * sum(widths) + 0.4, height))
    fig.set_layout_engine("constrained", w_pad=0.03, h_pad=0.04, wspace=0, hspace=0.02)
    grid = fig.subplots(rows, len(widths), width_ratios=widths, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place in range(len(clean)):
        row, column = place // across, 4 * (place % across)
        panels = grid[row, column : column + 3]
        for axes, image in zip(panels, (clean, changes, adversarial), strict=True):
            draw_image(axes, image[place])
        if row == 0:
            captions = ("original", f"change, ±{255 * eps:.3g}/255", "adversarial")
            for axes, caption in zip(panels, captions, strict=True):
                axes.set_title(caption, fontsize=8.5)
        truth = labels[place]
        write_prediction(panels[0], clean_predictions[place], truth)
        panels[1].set_xlabel(f"true: {shortened(truth, 13)}", fontsize=8, labelpad=2)
        write_prediction(panels[2], adversarial_predictions[place], truth)
    note = "Below the images: the class predicted (✓ right, ✗ wrong). Grey is no change."
    fig.supxlabel(note, fontsize=7.5, color="#444444")
    fig.suptitle(title, fontsize=10)
    return fig


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
    text = f"{'✓' if right else '✗'} {shortened(prediction, 18)}"
    axes.set_xlabel(text, fontsize=8, color=RIGHT if right else WRONG, labelpad=2)


def shortened(name: str, most: int) -> str:
    """A class name that fits below an image."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
