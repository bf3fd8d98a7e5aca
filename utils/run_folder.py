"""One run, one folder: finding checkpoints, and never replacing a run silently."""

from __future__ import annotations

import os
from pathlib import Path

from utils.errors import UserError

ROOT = Path("trained_models")
CHECKPOINTS = ("checkpoint.pth.tar", "checkpoint.previous.pth.tar", "model_best.pth.tar")
WRITTEN = (*CHECKPOINTS, "config.yml", "log.txt", "metrics.csv", "gradient_norms.csv")
PATTERNS = ("*.json", "*.png", "*.pdf", "*_images.csv", "imagenet_c_*.csv", "*.jsonl", "images_*/*")


def find_checkpoint(path: str) -> str:
    """`--resume PATH` as given, else under trained_models/.

    Raises:
        UserError: neither exists; the message lists what is there.
    """
    for candidate in (Path(path), ROOT / path):
        if candidate.is_file():
            return os.path.normpath(candidate)
        if candidate.is_dir():
            inside = [name for name in CHECKPOINTS if (candidate / name).is_file()]
            hint = f"; give {candidate / inside[-1]}" if inside else ""
            raise UserError(f"--resume {path} is a folder, not a checkpoint{hint}")
    there = sorted(str(p) for p in ROOT.glob("*/*.pth.tar") if not p.name.startswith("."))
    there += sorted(str(p) for p in Path(path).parent.glob("*.pt*") if str(p) not in there)
    listed = ", ".join(there[:6]) + (f" and {len(there) - 6} more" if len(there) > 6 else "")
    raise UserError(
        f"--resume {path}: no such checkpoint, here or under {ROOT}/; there is "
        + (listed or "none at all")
    )


def holds_run(folder: Path) -> bool:
    """Whether a training has saved anything here."""
    return any((folder / name).exists() for name in CHECKPOINTS)


def claim(folder: Path, resumed: bool, overwrite: bool) -> None:
    """Make sure that starting a run here loses nothing.

    Args:
        resumed: the run goes on from a checkpoint in this folder.
        overwrite: remove what an earlier run has left.

    Raises:
        UserError: a run is here and neither was asked for.
    """
    if resumed or not folder.exists():
        return
    if holds_run(folder) and not overwrite:
        raise UserError(
            f"{folder} already holds a run; go on with it by --resume auto, replace it by"
            " --overwrite, or give this one another --output_prefix"
        )
    for file in (path for pattern in (*WRITTEN, *PATTERNS) for path in folder.glob(pattern)):
        if file.is_file():
            file.unlink()
