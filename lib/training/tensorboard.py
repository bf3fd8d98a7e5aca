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
    """Writes what a training measures; a step is a minibatch, counted over the whole run.

    Args:
        folder: the run folder; events go into `<folder>/tensorboard`.
        next_step: the first step to be written; what an interrupted run has logged from there on
            is hidden.
    """

    def __init__(self, folder: Path, next_step: int) -> None:
        self.writer = require_tensorboard()(str(folder / "tensorboard"), purge_step=next_step)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Columns of metrics.csv: train_loss is `loss/train`."""
        for name, value in values.items():
            part, _, metric = name.partition("_")
            tag = f"{metric}/{part}" if part in ("train", "val") else f"run/{name}"
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def gradients(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """An epoch's rows of gradient_norms.csv, by column."""
        for row in rows:
            if row["parameter"] == "all":
                self.writer.add_scalar(f"gradient_ratio/{row['group']}", row["ratio"], step)

    def images(self, adversarial: torch.Tensor, step: int) -> None:
        """A grid of adversarial training images (B, 3, H, W) in [0, 1]."""
        grid = make_grid(adversarial[:MOST_IMAGES].float().cpu(), nrow=8)
        self.writer.add_image("adversarial", grid, step)

    def close(self) -> None:
        self.writer.close()
