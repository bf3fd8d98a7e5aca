"""One run, one folder: finding checkpoints, and never replacing a run silently."""

from __future__ import annotations

import os
from pathlib import Path

from utils.errors import UserError

ROOT = Path("trained_models")
CHECKPOINTS = ("checkpoint.pth.tar", "checkpoint.previous.pth.tar", "model_best.pth.tar")
# What takes work to make again. config.yml and log.txt alone are left by a start that failed.
RESULTS = (
    *CHECKPOINTS,
    "metrics.csv",
    "gradient_norms.csv",
    "attack_*.json",
    "attack_*.csv",
    "imagenet_c_*.json",
    "imagenet_c_*.csv",
    "*.jsonl",
)
WRITTEN = (*RESULTS, "config.yml", "log.txt", "*.png", "*.pdf", "*_images/*.png", ".*.pth.tar*")


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
    """Whether a training or an evaluation has left anything here."""
    return any(True for pattern in RESULTS for _ in folder.glob(pattern))


def claim(folder: Path, resumed: bool, overwrite: bool) -> None:
    """Make sure that starting a run here loses nothing.

    Args:
        resumed: the run goes on from a checkpoint in this folder.
        overwrite: remove what an earlier run has left, and nothing else.

    Raises:
        UserError: a run is here and neither was asked for.
    """
    if resumed or not folder.exists():
        return
    if not overwrite:
        if holds_run(folder):
            raise UserError(
                f"{folder} already holds a run; go on with it by --resume auto, replace it by"
                " --overwrite, or give this one another --output_prefix"
            )
        return
    for file in [path for pattern in WRITTEN for path in folder.glob(pattern)]:
        file.unlink(missing_ok=True)
