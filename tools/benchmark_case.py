"""What the benchmark measures, the images that it reads, and the process that measures a case."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.config.validators import REDUCE_OVERHEAD
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
EPS, STEP_SIZE = 4 / 255, 1 / 255
REPLAYS, ATTACK_STEPS = 4, 3  # of free, and of PGD adversarial training
DIFFERENT_JPEGS = 200
MISCLASSIFIED, ROBUST = 129, 204  # grey levels; see `benchmark_evaluation.HalfRobust`


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        part: free, methods, pgd, standard or reading.
        subject: `plain` for the written-out loop, `suite` for this one.
        precision: fp32, bf16 or fp16.
        compiled: as `TRAIN.compile`.
        arch, batch_size, crop_size, device, workers: as in training.
        data: folder of the images of `reading` and `standard`.
        pgd_steps: steps of PGD in `standard`.
        take_seconds: the shortest time measured, but a unit of work at least.
    """

    part: str
    subject: str
    precision: str
    compiled: bool | str
    arch: str
    batch_size: int
    crop_size: int
    device: str
    workers: int
    data: str
    pgd_steps: int
    take_seconds: float

    @property
    def name(self) -> str:
        """`plain`, `suite fp32`, `suite bf16 compile`, `suite bf16 reduce-overhead`."""
        if self.subject == "plain" or self.part == "reading":
            return self.subject
        compiled = "compile" if self.compiled is True else self.compiled
        return f"suite {self.precision}" + (f" {compiled}" if compiled else "")


def write_corruption_tree(folder: Path, size: int, images: int) -> None:
    """A corruption of five severities, each with so many JPEGs, links to a few different ones."""
    generator = np.random.default_rng(0)
    places = [folder / "gaussian_noise" / str(severity) / "class" for severity in range(1, 6)]
    for place in places:
        place.mkdir(parents=True)
    for number in range(images):
        original = places[0] / f"{number % DIFFERENT_JPEGS:06d}.jpg"
        if number < DIFFERENT_JPEGS:  # about as many bytes as ImageNet-C's, which have quality 85
            coarse = generator.normal(110, 60, (size // 3, size // 3, 3)).clip(0, 255)
            image = Image.fromarray(coarse.astype(np.uint8)).resize(
                (size, size), Image.Resampling.BICUBIC
            )
            image.save(original, quality=85)
        for place in places[number < DIFFERENT_JPEGS :]:
            os.link(original, place / f"{number:06d}.jpg")


def write_half_robust(folder: Path, size: int, images: int) -> None:
    """DIR/val of one class: by turns an image just above middle grey and a bright one, PNG."""
    place = folder / "val" / "class"
    place.mkdir(parents=True)
    for number in range(images):
        level = ROBUST if number % 2 else MISCLASSIFIED
        Image.new("RGB", (size, size), (level,) * 3).save(place / f"{number:05d}.png")


def cases_of(part: str, options: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """The plain loop, and the suite in every setting that matters to the part."""
    own = ("arch", "batch_size", "crop_size", "device", "workers", "pgd_steps", "take_seconds")
    settings = {name: getattr(options, name) for name in own}
    base = Case(part, "plain", "fp32", False, data=str(folder / part), **settings)
    precisions: list[str] = options.precisions
    compiled: list[bool | str] = [False] if options.no_compile else [False, True]
    if part == "reading":
        write_corruption_tree(folder / part, options.crop_size, options.reading_images)
        precisions, compiled = ["fp32"], [False]
    elif part == "standard":
        write_half_robust(folder / part, options.crop_size, options.standard_images)
        compiled = [False]  # batches of every size would be compiled again
    elif part != "pgd" and options.device.startswith("cuda") and not options.no_compile:
        compiled.append(REDUCE_OVERHEAD)
    if part != "methods":
        yield base
    for precision, on in product(precisions, compiled):
        yield replace(base, subject="suite", precision=precision, compiled=on)


def run(case: Case) -> dict[str, Any]:
    """One subject in a process of its own, which a signal does not reach before it ends us.

    Raises:
        UserError: it failed; its last words are on stderr.
    """
    words = [sys.executable, "-m", "tools.benchmark_subject", json.dumps(asdict(case))]
    done = subprocess.run(
        words, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    if done.returncode:
        hint = "; if memory was short, take a smaller --batch_size" if done.returncode < 0 else ""
        ended = f"ended with status {done.returncode}"
        raise UserError(f"{case.part}, {case.name}: its process {ended}{hint}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
