"""One run, one folder: finding checkpoints, and never replacing a run silently."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.config.load import read_yaml
from utils.errors import UserError
from utils.storage.conditions import KINDS
from utils.storage.files import remove_leftovers

ROOT = Path("trained_models")
LOCK_SECONDS = 5.0  # for a training that was killed to be gone
LATEST = "checkpoint.pth.tar"
PREVIOUS = "checkpoint.previous.pth.tar"
BEST = "model_best.pth.tar"
BEST_EMA = "model_ema_best.pth.tar"  # averaged weights
CHECKPOINTS = (LATEST, PREVIOUS, BEST_EMA, BEST)
# What takes work to make again. config.yml and log.txt alone are left by a start that failed.
RESULTS = (
    *CHECKPOINTS,
    "metrics.csv",
    "gradient_norms.csv",
    *(f"{kind}_*.{ending}" for kind in KINDS for ending in ("json", "csv")),
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


def run_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """The sections of a run's config.yml; none where there is no such file."""
    try:
        sections = read_yaml(str(folder / "config.yml"))
    except UserError:
        return {}
    return {name: keys for name, keys in sections.items() if isinstance(keys, dict)}


class FolderLock:
    """Keeps other trainings out of a run folder, until the end of a `with` block.

    What killed trainings have left of half a checkpoint is removed.

    The lock is this process's: it ends with it, however it ends, and the reading processes that
    are forked do not hold it. Where the system has no such locks, nothing is kept out.

    Raises:
        UserError: another training is at work there.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        deadline = time.monotonic() + LOCK_SECONDS
        while not self.acquire():
            if time.monotonic() > deadline:
                raise UserError(
                    f"another training is at work in {folder}; wait for its end, or give this one"
                    " another --output_prefix"
                )
            time.sleep(0.1)
        for name in CHECKPOINTS:
            remove_leftovers(folder / name)

    def acquire(self) -> bool:
        """Try once."""
        self.file = open(self.path, "w", encoding="utf-8")
        try:
            import fcntl

            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file since it was opened.
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
        except (BlockingIOError, PermissionError, FileNotFoundError):
            return False
        except (ImportError, OSError):  # a system or a file system without locks
            return True

    def release(self) -> None:
        with suppress(OSError):
            self.path.unlink()
        self.file.close()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.release()


def claim(folder: Path, resumed: bool, overwrite: bool) -> None:
    """Make sure that starting a run here loses nothing.

    Args:
        resumed: the run resumes from a checkpoint in this folder.
        overwrite: remove what an earlier run has left, and nothing else.

    Raises:
        UserError: a run is here and neither was asked for.
    """
    if resumed or not folder.exists():
        return
    if not overwrite:
        if any(True for pattern in RESULTS for _ in folder.glob(pattern)):
            raise UserError(
                f"{folder} already holds a run; resume it by --resume auto, replace it by"
                " --overwrite, or give this one another --output_prefix"
            )
        return
    for file in [path for pattern in WRITTEN for path in folder.glob(pattern)]:
        file.unlink(missing_ok=True)
