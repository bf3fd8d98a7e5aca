"""The commands as tests start them, with settings small enough for seconds; needs no pytest."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A network and images small enough for seconds on two cores; the crops stay real. 64 images and
# batches of 16: four minibatches a pass; three passes.
TINY = {
    "TRAIN.arch": "resnet18",
    "TRAIN.epochs": 6,
    "TRAIN.lr": 0.02,
    "TRAIN.print_freq": 1,
    "ADV.n_repeats": 2,
    "ADV.clip_eps": 16,
    "ADV.fgsm_step": 16,
    "ADV.pgd_attack": "[[2, 8/255]]",
    "DATA.batch_size": 16,
    "DATA.img_size": 32,
    "DATA.crop_size": 32,
    "DATA.workers": 0,
}


def settings(**changes: object) -> list[str]:
    """`--set` flags of TINY, with changes such as TRAIN__epochs=2."""
    values = {**TINY, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def command(script: str, *arguments: object) -> list[str]:
    """The command line of a script, or of a module where the name has no `.py`."""
    start = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    return [sys.executable, *start, *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """The environment of a command: one thread, so that tests beside each other stay quick."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}
