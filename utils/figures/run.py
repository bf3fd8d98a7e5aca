"""The figures that a training leaves in its run folder."""

from __future__ import annotations

from pathlib import Path


def draw_run(folder: Path) -> None:
    """Training curves, and gradient ratios where they have been measured, as PNG and PDF.

    Args:
        folder: holds metrics.csv, and gradient_norms.csv where there are any.
    """
    from utils.figures.style import run_label, save_figure
    from utils.figures.training import (
        gradient_ratio,
        read_gradient_norms,
        read_metrics,
        training_curves,
    )

    save_figure(training_curves(read_metrics(folder)), folder / "training_curves")
    if (folder / "gradient_norms.csv").exists():
        rows = read_gradient_norms(folder)
        save_figure(gradient_ratio({run_label(folder.name): rows}), folder / "gradient_ratio")
