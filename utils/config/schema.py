"""Every setting there is: default, type, range, unit. `configs.yml` shows the same with comments.

A setting is SECTION.key. TRAIN, ADV and DATA hold the published keys and some in the same spirit;
HE, EVAL and RUN hold what the published scripts took from flags or fixed in their code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

ARCHITECTURES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
PROTOCOLS = ("standard", "freeat", "paper")
ATTACK_LOSSES = ("ce", "margin", "dlr")
PRECISIONS = ("fp32", "bf16", "fp16")
ONE_255TH = 0.00392156862  # as the published configs.yml rounds 1/255


@dataclass(frozen=True)
class Setting:
    """One key: its default, how a value is read, and one line of help with the unit."""

    default: Any
    read: Callable[[Any], Any]
    help: str


def strict_bool(value: Any) -> bool:
    """True/False, yes/no, 1/0, in any case; anything else is a ValueError."""
    word = str(value).strip().lower()
    if word in ("true", "yes", "1"):
        return True
    if word in ("false", "no", "0"):
        return False
    raise ValueError(f"{value!r} is neither True nor False (yes/no and 1/0 work too)")


def number(value: Any) -> float:
    """A finite number; strings such as 1e-4 (text to YAML 1.1) and 1/255 are numbers too."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r} is not a number")
    try:
        result = float(Fraction(value)) if isinstance(value, str) and "/" in value else float(value)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is not a number") from None
    if not math.isfinite(result):
        raise ValueError(f"{value!r} is not finite")
    return result


def real(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[Any], float]:
    """A reader of numbers in [low, high], or (low, high] with `above`."""

    def read(value: Any) -> float:
        result = number(value)
        if result < low or result > high or (above and result == low):
            bound = f"above {low:g}" if above else f"at least {low:g}"
            raise ValueError(f"{value!r} must be {bound}" + limit(high))
        return result

    return read


def whole(low: int, high: float = math.inf) -> Callable[[Any], int]:
    """A reader of whole numbers in [low, high]."""

    def read(value: Any) -> int:
        result = number(value)
        if result != int(result):
            raise ValueError(f"{value!r} is not a whole number")
        try:
            result = int(value)  # a float holds 53 bits, and a seed may have 63
        except ValueError:  # text such as 1e3
            result = int(result)
        if not low <= result <= high:
            raise ValueError(f"{value!r} must be at least {low}" + limit(high))
        return result

    return read


def limit(high: float) -> str:
    """The second half of a range's wording."""
    return "" if high == math.inf else f" and at most {high}"


def choice(options: Sequence[str]) -> Callable[[Any], str]:
    """A reader of one of some words."""

    def read(value: Any) -> str:
        if value not in options:
            raise ValueError(f"{value!r} is not one of {', '.join(options)}")
        return value

    return read


def text(value: Any) -> str:
    """A non-empty string."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not text")
    return value


def output_prefix(value: Any) -> str:
    """Text that can be part of a folder's name."""
    value = text(value)
    if "/" in value or "\\" in value or value in (".", ".."):
        raise ValueError(f"{value!r} becomes part of a folder's name, so it holds no slash")
    return value


def device(value: Any) -> str:
    """The name of a kind of device; whether there is one here is for torch to say."""
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError(f"{value!r} is not one of auto, cpu, cuda, cuda:1, mps")
    return value


def numbers(
    count: int | None, low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[Any], list[float]]:
    """A reader of a list of numbers, of a fixed length where `count` is given."""
    one = real(low, high, above=above)

    def read(value: Any) -> list[float]:
        if not isinstance(value, (list, tuple)) or count not in (None, len(value)):
            wanted = "a list of numbers" if count is None else f"a list of {count} numbers"
            raise ValueError(f"{value!r} is not {wanted}")
        return [one(entry) for entry in value]

    return read


def pgd_rows(value: Any) -> list[list]:
    """The published form: a list of [steps, step size], then optionally loss and restarts."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{value!r} is not a list of [steps, step size]")
    return [pgd_row(row) for row in value]


def pgd_row(row: Any) -> list:
    """[steps, step size in [0, 1], loss, restarts], with `ce` and 1 where they are left out."""
    if not isinstance(row, (list, tuple)) or not 2 <= len(row) <= 4:
        raise ValueError(f"{row!r} is not [steps, step size] or [steps, step size, loss, restarts]")
    steps, size, loss, restarts = [*row, "ce", 1][:4] if len(row) == 2 else [*row, 1][:4]
    size = real(0, above=True)(size)
    if size >= 0.5:
        raise ValueError(
            f"the step size {size:g} of {list(row)!r} is in units of the range [0, 1], as"
            " published: write 1/255 for one grey level"
        )
    return [whole(1)(steps), size, choice(ATTACK_LOSSES)(loss), whole(1)(restarts)]


SCHEMA: dict[str, dict[str, Setting]] = {
    "TRAIN": {
        "arch": Setting("resnet50", choice(ARCHITECTURES), "torchvision architecture"),
        "epochs": Setting(
            90, whole(1), "epochs of natural training; FreeAT makes ceil(epochs / n_repeats) passes"
        ),
        "start_epoch": Setting(0, whole(0), "first pass over the data, counted from 0"),
        "lr": Setting(0.1, real(0, above=True), "SGD learning rate"),
        "momentum": Setting(0.9, real(0, 1), "SGD momentum"),
        "weight_decay": Setting(1e-4, real(0), "SGD weight decay"),
        "print_freq": Setting(10, whole(1), "minibatches between two lines of progress"),
        "mean": Setting(
            [0.485, 0.456, 0.406], numbers(3, 0, 1), "mean per colour, pixels in [0, 1]"
        ),
        "std": Setting(
            [0.229, 0.224, 0.225], numbers(3, 0, 1, above=True), "deviation per colour, in [0, 1]"
        ),
        "precision": Setting("fp32", choice(PRECISIONS), "arithmetic of training"),
        "compile": Setting(False, strict_bool, "compile the network with torch.compile"),
        "sync_bn": Setting(False, strict_bool, "batch statistics over all processes"),
        "checkpoint_minutes": Setting(10.0, real(0, above=True), "minutes between checkpoints"),
        "gradient_every": Setting(10, whole(1), "minibatches per sample of --print_gradients"),
        "select": Setting("clean", choice(("clean", "pgd")), "what model_best is best at"),
        "select_examples": Setting(1000, whole(1), "validation images of select: pgd"),
    },
    "ADV": {
        "clip_eps": Setting(4.0, real(0), "radius of the l-infinity ball, of max_color_value"),
        "fgsm_step": Setting(4.0, real(0), "step of the noise in training, same unit"),
        "n_repeats": Setting(4, whole(1), "replays of each minibatch (m)"),
        "pgd_attack": Setting(
            [[10, ONE_255TH], [50, ONE_255TH]],
            pgd_rows,
            "list of [steps, step size in [0, 1]], optionally followed by loss and restarts",
        ),
    },
    "DATA": {
        "imagenet": Setting("data/ImageNet", text, "default DIR: holds train/ and val/"),
        "imagenet_c": Setting("data/ImageNet-C", text, "default DIR of --eva_on_imagenet_c"),
        "workers": Setting(4, whole(0), "data loading processes, over all GPUs"),
        "batch_size": Setting(256, whole(1), "images per minibatch, over all GPUs"),
        "img_size": Setting(256, whole(1), "shorter side before the centre crop, pixels"),
        "min_area": Setting(
            0.08, real(0, 1, above=True), "smallest share of an image's area in a training crop"
        ),
        "flip": Setting(True, strict_bool, "mirror half of the training images"),
        "crop_size": Setting(224, whole(1), "side of the network's input, pixels"),
        "max_color_value": Setting(255.0, real(0, above=True), "unit of clip_eps and fgsm_step"),
    },
    "HE": {
        "FN": Setting(False, strict_bool, "normalise the features (--FN)"),
        "WN": Setting(False, strict_bool, "normalise the last layer's weight rows (--WN)"),
        "s_HE": Setting(10.0, real(0, above=True), "scale of the cosines (--s_HE)"),
        "angular_margin_HE": Setting(0.2, real(0, 2), "margin on the cosine (--angular_margin_HE)"),
    },
    "EVAL": {
        "protocol": Setting("standard", choice(PROTOCOLS), "whose evaluation (--protocol)"),
        "precision": Setting("fp32", choice(PRECISIONS), "arithmetic of the attack's search"),
        "compile": Setting(False, strict_bool, "compile the network with torch.compile"),
        "cascade": Setting(False, strict_bool, "attack only what earlier attacks left standing"),
        "scales": Setting(
            [], numbers(None, 0, above=True), "scales s of HE at which cross-entropy is attacked"
        ),
    },
    "RUN": {
        "seed": Setting(0, whole(0, 2**63 - 1), "seed of weights, order, crops, attacks (--seed)"),
        "device": Setting("auto", device, "auto, cpu, cuda, cuda:N or mps (--device)"),
        "nproc": Setting(0, whole(0), "processes; 0 is one per GPU, or one (--nproc)"),
        "output_prefix": Setting("free_adv", output_prefix, "part of the run's folder name"),
    },
}
