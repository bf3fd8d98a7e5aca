"""The figures that a training leaves in its run folder."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from utils.figures.gradients import gradient_ratio, read_gradient_norms
from utils.figures.style import run_label, save_figure
from utils.figures.training import read_metrics, training_curves
from utils.storage.run_folder import run_settings


def draw_run(folder: Path) -> None:
    """Training curves, and gradient ratios where they have been measured, as PNG and PDF.

    Args:
        folder: holds metrics.csv, and gradient_norms.csv where there are any.
    """
    save_figure(draw_training(folder), folder / "training_curves")
    if (folder / "gradient_norms.csv").exists():
        rows = read_gradient_norms(folder)
        save_figure(gradient_ratio({run_label(folder.name): rows}), folder / "gradient_ratio")


def draw_training(folder: Path, title: str = "") -> Figure:
    settings = run_settings(folder)
    head = settings.get("HE", {})
    margin = bool((head.get("FN") or head.get("WN")) and head.get("angular_margin_HE"))
    natural = settings.get("TRAIN", {}).get("method") == "natural"
    images = "clean" if natural else "adversarial"
    return training_curves(read_metrics(folder), title, margin, images)
