"""The corruptions of ImageNet-C (arXiv:1903.12261): names, groups, AlexNet's errors.

Those of its successors, ImageNet-C-bar (arXiv:2102.11273) and 3DCC (arXiv:2203.01441), are known by
name, and never count in mCE.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from utils.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """One corruption: its group, and AlexNet's top-1 error averaged over the five severities.

    The errors are those of Hendrycks & Dietterich, used by AugMix too. The extra corruptions and
    those of successors have none, for they never count.
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
C_BAR = (
    *("blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout"),
    *("cocentric_sine_waves", "inverse_sparkles", "perlin_noise", "plasma_noise"),
    *("single_frequency_greyscale", "sparkles"),
)
THREE_D = (
    *("near_focus", "far_focus", "bit_error", "color_quant", "flash", "fog_3d"),
    *("h265_abr", "h265_crf", "iso_noise", "low_light", "xy_motion_blur", "z_motion_blur"),
)
CORRUPTIONS |= dict.fromkeys(C_BAR, Corruption("c-bar", None))
CORRUPTIONS |= dict.fromkeys(THREE_D, Corruption("3dcc", None))
STANDARD = tuple(name for name, entry in CORRUPTIONS.items() if entry.alexnet_error is not None)
EXTRA = tuple(name for name, entry in CORRUPTIONS.items() if entry.group == "extra")
SETS = {"": STANDARD, "extra": STANDARD + EXTRA, "c-bar": C_BAR, "3dcc": THREE_D}  # in file names
GROUPS = {
    group: tuple(name for name in STANDARD if CORRUPTIONS[name].group == group)
    for group in dict.fromkeys(CORRUPTIONS[name].group for name in STANDARD)
}


def choose_corruptions(asked: Sequence[str] | None, present: Sequence[str] = ()) -> tuple[str, ...]:
    """The corruptions to evaluate, in the table's order.

    Args:
        asked: names; `extra` adds the four extra ones to the names given, or to the 15 where no
            name is; `all` is whatever the tree holds. None or nothing is the 15.
        present: what the tree holds.

    Raises:
        UserError: an unknown name, with the nearest known one.
    """
    asked = [name.strip() for name in asked or ()]
    known = [*CORRUPTIONS, "extra", "all"]
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UserError(f"--corruptions: unknown corruption {name!r}; {hint}")
    if "all" in asked:
        others = sorted(set(present) - set(CORRUPTIONS))
        return (*(name for name in CORRUPTIONS if name in present), *others)
    wanted = {name for name in asked if name != "extra"} or set(STANDARD)
    if "extra" in asked:
        wanted.update(EXTRA)
    return tuple(name for name in CORRUPTIONS if name in wanted)


def group_of(name: str) -> str:
    """A corruption's group; `other` where it is none of the table."""
    return CORRUPTIONS[name].group if name in CORRUPTIONS else "other"


def corruptions_label(names: Sequence[str]) -> str:
    """What names of files say of these: nothing of the 15, a set's name, else the names."""
    label = next((label for label, members in SETS.items() if set(members) == set(names)), None)
    return "+".join(names) if label is None else label
