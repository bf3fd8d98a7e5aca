"""What the benchmark measures, and the images that it reads."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

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
        compiled: whether torch.compile is on.
        arch, batch_size, crop_size, device, workers: as in training.
        data: folder of the images of `reading` and `standard`.
        pgd_steps: steps of PGD in `standard`.
        take_seconds: the shortest time measured, but a unit of work at least.
    """

    part: str
    subject: str
    precision: str
    compiled: bool
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
        """`plain`, `suite fp32`, `suite bf16 compile`."""
        if self.subject == "plain" or self.part == "reading":
            return self.subject
        return f"suite {self.precision}" + (" compile" if self.compiled else "")

    def as_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


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
