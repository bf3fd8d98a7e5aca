"""One run, one folder: finding checkpoints, and never replacing a run silently."""

import os
import time
from pathlib import Path
from typing import Any, TextIO

from utils.config.load import read_yaml
from utils.errors import UserError
from utils.text import shortlist

ROOT = Path("trained_models")
LOCK_SECONDS = 5.0  # for a training that was killed to be gone
LATEST = "checkpoint.pth.tar"
PREVIOUS = "checkpoint.previous.pth.tar"
BEST = "model_best.pth.tar"
BEST_EMA = "model_ema_best.pth.tar"  # averaged weights
KINDS = ("attack", "imagenet_c", "shift")  # what the names of result files begin with
CHECKPOINTS = (LATEST, PREVIOUS, BEST_EMA, BEST)
TABLES = ("metrics.csv", "gradient_norms.csv")
# What takes work to make again. config.yml and log.txt alone are left by a start that failed.
RESULTS = (
    *CHECKPOINTS,
    *TABLES,
    *(f"{kind}_*.{ending}" for kind in KINDS for ending in ("json", "csv")),
    "*.jsonl",
)
OF_TRAINING = (*CHECKPOINTS, *TABLES, "config.yml", "training_curves.*", "gradient_ratio.*")
UNFINISHED = tuple(f".{name}.????????" for name in OF_TRAINING)  # by a training that was killed
WRITTEN = (*RESULTS, *UNFINISHED, "config.yml", "log.txt", "*.png", "*.pdf", "*_images/*.png")


def find_checkpoint(path: str, flag: str = "--resume") -> str:
    """`--resume PATH`, or that of another flag, as given, else under trained_models/."""
    for candidate in (Path(path), ROOT / path):
        if candidate.is_file():
            return os.path.normpath(candidate)
        if candidate.is_dir():
            inside = [name for name in CHECKPOINTS if (candidate / name).is_file()]
            hint = f"; give {candidate / inside[-1]}" if inside else ""
            raise UserError(f"{flag} {path} is a folder, not a checkpoint{hint}")
    files = sorted(str(p) for p in ROOT.glob("*/*.pth.tar") if not p.name.startswith("."))
    files += sorted(str(p) for p in Path(path).parent.glob("*.pt*") if str(p) not in files)
    listed = shortlist(files, 6) or "none at all"
    raise UserError(f"{flag} {path}: no such checkpoint, here or under {ROOT}/; there is {listed}")


def run_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """The sections of a run's config.yml; none where there is no such file."""
    try:
        sections = read_yaml(str(folder / "config.yml"))
    except UserError:
        return {}
    return {name: keys for name, keys in sections.items() if isinstance(keys, dict)}


def claim(folder: Path, resumed: bool, overwrite: bool, lock: TextIO | None = None) -> TextIO:
    """Keep other trainings out of a run folder, and make sure that starting here loses nothing.

    Args:
        lock: of the folder, where it is held already.
    """
    lock = lock or lock_folder(folder)
    if overwrite and not resumed:
        leftovers = [path for pattern in WRITTEN for path in folder.glob(pattern)]
    elif resumed or not any(path for pattern in RESULTS for path in folder.glob(pattern)):
        leftovers = [path for pattern in UNFINISHED for path in folder.glob(pattern)]
    else:
        lock.close()
        raise UserError(
            f"{folder} already holds a run; resume it by --resume auto, replace it by"
            " --overwrite, or give this one another --output_prefix"
        )
    for path in leftovers:
        path.unlink(missing_ok=True)
    return lock


def lock_folder(folder: Path) -> TextIO:
    """A file that no other training can open while it is open here; no forked worker holds it."""
    file = open(folder / ".lock", "w", encoding="utf-8")
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if time.monotonic() > deadline:
                file.close()
                raise UserError(
                    f"another training is at work in {folder}; wait for its end, or give this one"
                    " another --output_prefix"
                ) from error
            time.sleep(0.1)
            continue
        except (ImportError, OSError):  # a system or a file system without locks
            pass
        return file
