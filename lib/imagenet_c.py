"""What ImageNet-C is (arXiv:1903.12261) and the figures that are made of its accuracies.

Everything is keyed by the corruption's name, so no order of folders or of lists matters. Nothing
here needs torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from utils.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)
ALEXNET_CLEAN_ERROR = 0.4348  # torchvision's weights, top-1 56.52 %


@dataclass(frozen=True)
class Corruption:
    """One corruption: its group, and AlexNet's top-1 error averaged over the five severities.

    The errors are those of Hendrycks & Dietterich, used by AugMix too. The four extra corruptions
    have none, for they never count.
    """

    group: str
    alexnet_error: float | None


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption("noise", 0.886428),
    "shot_noise": Corruption("noise", 0.894468),
    "impulse_noise": Corruption("noise", 0.922640),
    "defocus_blur": Corruption("blur", 0.819880),
    "glass_blur": Corruption("blur", 0.826268),
    "motion_blur": Corruption("blur", 0.785948),
    "zoom_blur": Corruption("blur", 0.798360),
    "snow": Corruption("weather", 0.866816),
    "frost": Corruption("weather", 0.826572),
    "fog": Corruption("weather", 0.819324),
    "brightness": Corruption("weather", 0.564592),
    "contrast": Corruption("digital", 0.853204),
    "elastic_transform": Corruption("digital", 0.646056),
    "pixelate": Corruption("digital", 0.717840),
    "jpeg_compression": Corruption("digital", 0.606500),
    "speckle_noise": Corruption("extra", None),
    "gaussian_blur": Corruption("extra", None),
    "spatter": Corruption("extra", None),
    "saturate": Corruption("extra", None),
}
STANDARD = tuple(name for name, entry in CORRUPTIONS.items() if entry.group != "extra")
EXTRA = tuple(name for name, entry in CORRUPTIONS.items() if entry.group == "extra")
GROUPS = {
    group: tuple(name for name in STANDARD if CORRUPTIONS[name].group == group)
    for group in dict.fromkeys(CORRUPTIONS[name].group for name in STANDARD)
}


def choose_corruptions(asked: Sequence[str] | None) -> tuple[str, ...]:
    """The corruptions to evaluate, in the table's order.

    Args:
        asked: names; `extra` adds the four extra ones to the names given, or to the 15 where no
            name is. None or nothing is the 15.

    Raises:
        UserError: an unknown name, with the nearest known one.
    """
    asked = [name.strip() for name in asked or ()]
    for name in asked:
        if name not in CORRUPTIONS and name != "extra":
            near = difflib.get_close_matches(name, [*CORRUPTIONS, "extra"], n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(CORRUPTIONS)}"
            raise UserError(f"--corruptions: unknown corruption {name!r}; {hint}")
    wanted = {name for name in asked if name != "extra"} or set(STANDARD)
    if "extra" in asked:
        wanted.update(EXTRA)
    return tuple(name for name in CORRUPTIONS if name in wanted)


def corruption_error(name: str, accuracies: Sequence[float]) -> float:
    """CE in percent: sum of errors over the severities, over AlexNet's sum.

    Args:
        name: one of the 15.
        accuracies: top-1 at the five severities, fractions in [0, 1].
    """
    return 100 * (1 - fmean(accuracies)) / CORRUPTIONS[name].alexnet_error


def relative_corruption_error(
    name: str, accuracies: Sequence[float], clean_accuracy: float
) -> float:
    """Relative CE in percent: both sides of CE less the network's error on clean images."""
    rise = clean_accuracy - fmean(accuracies)
    return 100 * rise / (CORRUPTIONS[name].alexnet_error - ALEXNET_CLEAN_ERROR)


def are_imagenet_classes(classes: Sequence[str]) -> bool:
    """Whether these are ImageNet's 1000 classes: WordNet ids such as n01440764, all of them."""
    return len(set(classes)) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in classes)


def summarise(
    accuracies: Mapping[str, Sequence[float]],
    classes: Sequence[str],
    clean_accuracy: float | None = None,
) -> dict[str, Any]:
    """The figures over all corruptions. What cannot be had is None, with the reason.

    Args:
        accuracies: top-1 per corruption at the five severities, fractions in [0, 1].
        classes: the folder names of the tree's classes.
        clean_accuracy: top-1 on clean images, a fraction; relative mCE needs it.

    Returns:
        mean_accuracy (over the 15, the figure of arXiv:2002.08619), mean_error and groups as
        fractions; mCE and relative_mCE in percent, as they are published; CE per corruption, in
        percent; left_out: {name: reason}. The extra corruptions count in none of them.
    """
    left_out: dict[str, str] = {}
    means = {name: fmean(accuracies[name]) for name in STANDARD if name in accuracies}
    groups = {
        group: fmean(means[name] for name in members) if means.keys() >= set(members) else None
        for group, members in GROUPS.items()
    }
    for group in (group for group, value in groups.items() if value is None):
        absent = [name for name in GROUPS[group] if name not in means]
        left_out[group] = f"without {', '.join(absent)}"
    partial = incomplete(means)
    mean_accuracy = None if partial else fmean(means.values())
    if partial:
        left_out["mean_accuracy"] = left_out["mean_error"] = partial
    mce, relative = corruption_errors(accuracies, classes, clean_accuracy, left_out)
    return {
        "mean_accuracy": mean_accuracy,
        "mean_error": None if mean_accuracy is None else 1 - mean_accuracy,
        "mCE": fmean(mce.values()) if mce else None,
        "relative_mCE": fmean(relative.values()) if relative else None,
        "groups": groups,
        "CE": mce,
        "left_out": left_out,
    }


def incomplete(present: Mapping[str, Any]) -> str:
    """Why a figure over the 15 cannot be had, or nothing."""
    absent = [name for name in STANDARD if name not in present]
    if not absent:
        return ""
    which = ", ".join(absent) if len(absent) <= 4 else f"{', '.join(absent[:3])}, ..."
    return f"needs all 15 corruptions; {len(absent)} were not evaluated: {which}"


def corruption_errors(
    accuracies: Mapping[str, Sequence[float]],
    classes: Sequence[str],
    clean_accuracy: float | None,
    left_out: dict[str, str],
) -> tuple[dict[str, float], dict[str, float]]:
    """CE and relative CE of the 15, in percent; empty, with the reason in `left_out`, otherwise."""
    reason = incomplete(accuracies)
    if not reason and not are_imagenet_classes(classes):
        reason = (
            f"needs ImageNet's 1000 classes, for AlexNet's errors are over them;"
            f" this tree has {len(classes)} classes"
        )
        if len(classes) == 1000:
            reason += " that are not named by ImageNet's ids (n01440764, ...)"
    if reason:
        left_out["mCE"] = left_out["relative_mCE"] = reason
        return {}, {}
    errors = {name: corruption_error(name, accuracies[name]) for name in STANDARD}
    if clean_accuracy is None:
        left_out["relative_mCE"] = (
            "needs the clean accuracy of the same checkpoint: give --clean_accuracy,"
            " or run the attack evaluation (-e) first"
        )
        return errors, {}
    relative = {
        name: relative_corruption_error(name, accuracies[name], clean_accuracy) for name in STANDARD
    }
    return errors, relative
