"""AutoAttack (Croce & Hein 2020, arXiv:2003.01690) by its authors' package, one chunk at a time.

The standard version: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square, each on
what the ones before left standing. The package takes all images in one tensor and keeps a state
file that does not resume; here the caller cuts the images into chunks, stores each chunk's outcome
and goes on after the last one stored.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lib.algorithm.pgd import attacking
from lib.algorithm.seeds import derived_seed
from utils.errors import UserError

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
FEWEST_CLASSES = 4  # the targeted DLR loss takes the fourth largest logit
TARGETS = 9  # of the targeted attacks, where there are as many other classes
SQUARE_BOUND = 0.002  # share of the images
ROUNDING = 1e-6  # of float32 pixels, in units of [0, 1]


@dataclass(frozen=True)
class AutoAttackOutcome:
    """What became of one chunk.

    Attributes:
        clean: (B,) bool, classified right before any attack.
        robust_after: attack to (B,) bool, still right after it and all before it, in order.
        adversarial: (B, 3, H, W), the image that fooled the network; the clean one where none did.
        warnings: the package's, such as zero gradients or outputs that vary; each once.
    """

    clean: torch.Tensor
    robust_after: dict[str, torch.Tensor]
    adversarial: torch.Tensor
    warnings: tuple[str, ...]

    @property
    def robust(self) -> torch.Tensor:
        """(B,) bool, right after all four attacks."""
        return self.robust_after[STANDARD[-1]]


def chunk_seed(seed: int, first_index: int) -> int:
    """The seed of the chunk that starts with this image, wherever an evaluation was resumed."""
    return derived_seed(seed, first_index)


def attack_chunk(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    eps: float,
    seed: int,
    batch_size: int,
    device: torch.device | str | None = None,
    progress: Callable[[str, int], object] = lambda attack, robust: None,
) -> AutoAttackOutcome:
    """Run the standard version on some images.

    The outcome is a function of the arguments alone; the process's random state is left as it was.
    Starting points are drawn for a whole batch, so other chunks or batches give other points.

    Args:
        model: (B, 3, H, W) in [0, 1] to logits; put into evaluation mode while it is attacked.
        images: (B, 3, H, W) in [0, 1].
        labels: (B,) int64.
        eps: radius of the l-infinity ball, in units of [0, 1].
        seed: from `chunk_seed`.
        batch_size: the most that are attacked at once.
        device: where the model is; None for the images'.
        progress: called after each attack with its name and the number of images still right.

    Raises:
        UserError: the package is not installed, or the network has fewer than 4 classes.
    """
    device = torch.device(device or images.device)
    # The package draws, clamps and reshapes float32 images that are contiguous.
    x = images.to(device, torch.float32, memory_format=torch.contiguous_format)
    y = labels.to(device)
    with attacking(model), preserved_state(device), collected_warnings() as warnings:
        logits_of = in_float32(model)
        alive, classes = classify(logits_of, x, y, batch_size)
        adversary = standard_version(logits_of, classes, eps, seed, device)
        clean, adversarial, robust_after = alive.clone(), x.clone(), {}
        for attack in STANDARD:
            if alive.any():
                places = alive.nonzero().squeeze(1)
                adversary.attacks_to_run = [attack]
                found, predicted = adversary.run_standard_evaluation(
                    x[places], y[places], batch_size=batch_size
                )
                fooled = places[predicted != y[places]]
                adversarial[fooled] = found[predicted != y[places]]
                alive[fooled] = False
            robust_after[attack] = alive.clone()
            progress(attack, int(alive.sum()))
    assert (adversarial - x).abs().max() <= eps + ROUNDING, "left the eps-ball"
    assert torch.equal(adversarial, adversarial.clamp(0, 1)), "left the pixel range"
    return AutoAttackOutcome(clean, robust_after, adversarial, tuple(dict.fromkeys(warnings)))


def square_warnings(robust_after: dict[str, int], n: int) -> list[str]:
    """Doubt about the whole evaluation, where the attack without gradients beats those with them.

    The package says this of one call; here all chunks count together. The bound is its own.

    Args:
        robust_after: attack to the number of images still right after it.
        n: all images.
    """
    before, after = (robust_after[attack] for attack in STANDARD[-2:])
    if before - after <= SQUARE_BOUND * n:
        return []
    text = (
        f"AutoAttack: Square, which uses no gradients, broke {before - after} images that the"
        " gradient attacks had left: gradients may be masked, robustness overestimated"
    )
    return [text]


def standard_version(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    classes: int,
    eps: float,
    seed: int,
    device: torch.device,
) -> Any:
    """The package's attack object.

    Raises:
        UserError: the package is not installed, or there are fewer than 4 classes.
    """
    require_classes(classes)
    adversary = require_package()(logits_of, eps=eps, seed=seed, device=device, version="standard")
    # As published for 10 classes or more; with fewer the package would count past the last one.
    targets = min(TARGETS, classes - 1)
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
    return adversary


def require_package() -> Any:
    """The package's `AutoAttack`; to be called before long work too.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise UserError(
            "--attack autoattack needs the package pyautoattack;"
            " pip install -r requirements-extra.txt"
        ) from error
    return AutoAttack


def require_classes(classes: int) -> None:
    """To be called before long work, like `require_package`.

    Raises:
        UserError: there are fewer than 4 classes.
    """
    if classes < FEWEST_CLASSES:
        raise UserError(
            f"AutoAttack needs {FEWEST_CLASSES} classes or more, since its targeted DLR loss takes"
            f" the fourth largest logit; this network has {classes}: use --attack pgd50-margin"
        )


def in_float32(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network for float32 images and logits, whatever its own precision."""
    parameter = next(model.parameters(), None)
    dtype = torch.float32 if parameter is None else parameter.dtype

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        return model(images.to(dtype)).float()

    return logits_of


@torch.no_grad()
def classify(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
) -> tuple[torch.Tensor, int]:
    """Which images are classified right, (B,) bool, and the number of classes."""
    logits = torch.cat([logits_of(batch) for batch in images.split(batch_size)])
    return logits.argmax(dim=1) == labels, logits.shape[1]


@contextmanager
def preserved_state(device: torch.device) -> Iterator[None]:
    """Random state and trace function (a debugger's, say) as before; the package sets both."""
    trace = sys.gettrace()
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            sys.settrace(trace)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The package's warnings as a list, instead of on the terminal."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().replace(" See flags_doc.md for details.", "")
            text = re.sub(
                r"there are \d+ points", "there are points", text
            )  # told once, not per step
            found.append(f"AutoAttack: {text}")

    logger, handler = logging.getLogger("auto-attack"), Collector(logging.WARNING)
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
