"""The means and corruption errors of ImageNet-C (arXiv:1903.12261) from its accuracies.

Everything is keyed by the corruption's name, so no order of folders or of lists matters. Nothing
here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lib.imagenet_c.corruptions import CORRUPTIONS, GROUPS, STANDARD
from utils.storage.results import Summary

ALEXNET_CLEAN_ERROR = 0.4348  # torchvision's weights, top-1 56.52 %


def alexnet_error(name: str) -> float:
    """AlexNet's mean error on one of the 15, a fraction."""
    error = CORRUPTIONS[name].alexnet_error
    assert error is not None
    return error


def corruption_error(name: str, accuracies: Sequence[float]) -> float:
    """CE in percent: sum of errors over the severities, over AlexNet's sum.

    Args:
        name: one of the 15.
        accuracies: top-1 at the five severities, fractions in [0, 1].
    """
    return 100 * (1 - fmean(accuracies)) / alexnet_error(name)


def relative_corruption_error(
    name: str, accuracies: Sequence[float], clean_accuracy: float
) -> float:
    """Relative CE in percent: both sides of CE less the network's error on clean images."""
    rise = clean_accuracy - fmean(accuracies)
    return 100 * rise / (alexnet_error(name) - ALEXNET_CLEAN_ERROR)


def are_imagenet_classes(classes: Sequence[str]) -> bool:
    """Whether these are ImageNet's 1000 classes: WordNet ids such as n01440764, all of them."""
    return len(set(classes)) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in classes)


def summarise(
    accuracies: Mapping[str, Sequence[float]],
    classes: Sequence[str],
    clean_accuracy: float | None = None,
) -> Summary:
    """The metrics over all corruptions. What is undefined is None, with the reason.

    Args:
        accuracies: top-1 per corruption at the five severities, fractions in [0, 1].
        classes: the folder names of the tree's classes.
        clean_accuracy: top-1 on clean images, a fraction; relative mCE needs it.
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
    return Summary(
        mean_accuracy=mean_accuracy,
        mean_error=None if mean_accuracy is None else 1 - mean_accuracy,
        mCE=fmean(mce.values()) if mce else None,
        relative_mCE=fmean(relative.values()) if relative else None,
        groups=groups,
        CE=mce,
        left_out=left_out,
    )


def incomplete(present: Mapping[str, Any]) -> str:
    """Why a metric over the 15 is undefined, or nothing."""
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
