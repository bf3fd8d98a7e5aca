"""Images that the benchmark reads: as many bytes and as much detail as photographs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

GROUND = 129 / 255  # a mean that two sign steps of PGD bring below middle grey
BRIGHT = 0.8


def texture(generator: np.random.Generator, size: int) -> np.ndarray:
    """Noise of all scales, (size, size, 3), mean 0, standard deviation 1: 1/f, as photographs."""
    image, side = np.zeros((size, size, 3)), 4
    while side <= size:
        coarse = generator.normal(size=(side, side, 3)).astype(np.float32)
        for colour in range(3):
            layer = Image.fromarray(coarse[..., colour]).resize((size, size), Image.BICUBIC)
            image[..., colour] += np.asarray(layer) / side
        side *= 2
    image -= image.mean((0, 1))
    return image / image.std()


def write_corruption_tree(
    folder: Path, size: int, images: int, different: int, severities: int = 5
) -> None:
    """A corruption of five severities, each with `images` JPEGs, laid out as ImageNet-C.

    A severity's files are links to `different` ones, so that a large tree is made quickly.
    """
    generator = np.random.default_rng(0)
    originals = folder.with_name(f"{folder.name}_originals")
    originals.mkdir(parents=True)
    for number in range(different):
        pixels = np.clip(110 + 60 * texture(generator, size), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(originals / f"{number}.jpg", quality=85)  # as ImageNet-C's
    for severity in range(1, severities + 1):
        place = folder / "gaussian_noise" / str(severity) / "class"
        place.mkdir(parents=True)
        for number in range(images):
            os.link(originals / f"{number % different}.jpg", place / f"{number:06d}.jpg")


def write_half_robust(folder: Path, size: int, images: int) -> None:
    """DIR/val of one class: by turns an image just above middle grey and a bright one, PNG."""
    generator = np.random.default_rng(0)
    place = folder / "val" / "class"
    place.mkdir(parents=True)
    for number in range(images):
        centre = BRIGHT if number % 2 else GROUND
        detail = np.clip(texture(generator, size), -3, 3)
        pixels = centre + 0.03 * (detail - detail.mean((0, 1)))
        levels = np.floor(255 * pixels + generator.random(pixels.shape))  # dithering keeps the mean
        Image.fromarray(levels.astype(np.uint8)).save(place / f"{number:05d}.png")
