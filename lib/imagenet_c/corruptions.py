"""The corruptions of ImageNet-C (arXiv:1903.12261): names, groups, AlexNet's errors."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from utils.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)


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


def corruptions_label(names: Sequence[str]) -> str:
    """What names of files say of these: nothing of the 15, `extra` of all, else the names."""
    if set(names) == set(STANDARD):
        return ""
    return "extra" if set(names) == set(CORRUPTIONS) else "+".join(names)
