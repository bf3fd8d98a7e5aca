"""`--tensorboard`: scalars, learning rate, gradient ratios and a grid of adversarial images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.utils import make_grid

from utils.errors import UserError

MOST_IMAGES = 16


def require_tensorboard() -> Any:
    """torch's SummaryWriter."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard needs the package tensorboard; pip install -r requirements-extra.txt"
        ) from error
    return SummaryWriter


class TensorBoardLog:
    """Writes one step an epoch.

    Args:
        folder: the run folder; events go into `<folder>/tensorboard`.
        next_epoch: the first epoch to be written, counted from 1; what an interrupted run has
            logged from there on is hidden.
    """

    def __init__(self, folder: Path, next_epoch: int) -> None:
        self.writer = require_tensorboard()(str(folder / "tensorboard"), purge_step=next_epoch)

    def epoch(self, row: Mapping[str, Any], gradients: Sequence[Mapping[str, Any]]) -> None:
        """An epoch's row of metrics.csv, and its rows of gradient_norms.csv, by column."""
        step = row["epoch"]
        for name, value in row.items():
            if name != "epoch" and value != "":
                group = name.partition("_")[0] if name.startswith(("train_", "val_")) else "run"
                self.writer.add_scalar(f"{group}/{name}", value, step)
        for entry in gradients:
            if entry["parameter"] == "all":
                name = f"gradient_ratio/{entry['group']}"
                self.writer.add_scalar(name, entry["ratio"], step)
        self.writer.flush()

    def images(self, adversarial: torch.Tensor, step: int) -> None:
        """A grid of adversarial training images (B, 3, H, W) in [0, 1]."""
        grid = make_grid(adversarial[:MOST_IMAGES].float().cpu(), nrow=8)
        self.writer.add_image("adversarial", grid, step)

    def close(self) -> None:
        self.writer.close()
