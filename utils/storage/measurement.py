"""What decides an evaluation's numbers, and so its files' names and what may be resumed.

Two measurements that differ in anything never share a file, and the same one again replaces its
own file alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REACH = 2.5  # radii that the steps of PGD add up to outside Linf, as in MadryLab's robustness
KINDS = ("attack", "imagenet_c", "shift")  # what the names of result files begin with


@dataclass(frozen=True)
class Measurement:
    """Everything that can change a number.

    Attributes:
        kind: `attack`, `imagenet_c` or `shift`.
        protocol: `standard`, `freeat` or `paper`.
        checkpoint: SHA-256 of the network's file or weights.
        images: SHA-256 of the list of images.
        resize, crop: shorter side before the crop (None: not resized) and side of the crop, pixels.
        scale: factor on the network's outputs, s of HE.
        attacks: names with their step, `pgd10@1`, see `attack_text`.
        eps: radius, in [0, 1] for Linf.
        transfer: SHA-256 of the network that was attacked, where it is another one.
        class_order: `DATA.class_order`, where the checkpoint carries no class names.
        network: what flags say of a network whose file does not, such as `FN` or another mean.
        checkpoint_name: file name; empty for a run's best model.
        subset: which images, `n500` or `ids1a2b3c4d`; empty for all. `images` says it exactly.
        corruptions: `extra`, `snow+fog`; empty for the standard 15. Names of shifted test sets.
        transfer_name: file name of the network that was attacked.
    """

    kind: str
    protocol: str
    checkpoint: str
    images: str
    resize: int | None
    crop: int
    scale: float = 1.0
    attacks: tuple[str, ...] = ()
    eps: float = 0.0
    norm: str = "Linf"
    precision: str = "fp32"
    scales: tuple[float, ...] = ()
    seed: int = 0
    cascade: bool = False
    transfer: str = ""
    class_order: str = "auto"
    network: str = ""
    # Labels that names have; the results of earlier versions do not hold them.
    checkpoint_name: str = field(default="", compare=False)
    subset: str = field(default="", compare=False)
    corruptions: str = field(default="", compare=False)
    transfer_name: str = field(default="", compare=False)

    def fingerprint(self) -> dict[str, Any]:
        """Plain values: what an interrupted evaluation and the one that resumes it must share."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that tell this measurement from any other."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def attack_text(name: str, step_size: float) -> str:
    """`pgd10@1`: an attack and its step in 1/255; the bare name where the attack sets its steps."""
    name = name.partition("@")[0]
    # 0.00392157, as published files have it, is 1/255.
    return f"{name}@{round(255 * step_size, 6):.10g}" if step_size else name


def file_stem(path: str) -> str:
    """A checkpoint's file name without its ending, `.pth.tar`, `.pt` or another."""
    return Path(path.removesuffix(".tar")).stem


def radius_number(eps: float, norm: str = "Linf") -> str:
    """`4` for 4/255 under Linf; the radius itself under other norms."""
    return f"{round(255 * eps, 4):g}" if norm == "Linf" else f"{eps:g}"


def radius_text(eps: float, norm: str = "Linf") -> str:
    """`4/255` under Linf; `0.5 (L2)`."""
    number = radius_number(eps, norm)
    return f"{number}/255" if norm == "Linf" else f"{number} ({norm})"


def subset_label(subset: Mapping[str, Any], total: int, listed: bool) -> str:
    """`n500` of evenly spread images, `ids1a2b3c4d` of listed ones, nothing of all.

    Args:
        subset: n and the list's sha256.
        total: images there are.
    """
    if subset["n"] >= total:
        return ""
    return f"ids{subset['sha256'][:8]}" if listed else f"n{subset['n']}"


def step_outside_linf(steps: int, eps: float) -> float:
    """The usual step of PGD in L2 and L1: so many of them reach any point of the ball."""
    return REACH * eps / steps


def attacks_part(measured: Measurement, usual: Measurement) -> str:
    """`_pgd10+pgd50@2`: steps are named where they are not the usual ones."""
    if measured.norm != "Linf":
        names = [name_outside_linf(text, measured.eps) for text in measured.attacks]
        usual_names = [text.partition("@")[0] for text in usual.attacks]
        return "" if names == usual_names else "_" + "+".join(names)
    step = usual.attacks[0].partition("@")[2] if usual.attacks else ""
    return "_" + "+".join(text.removesuffix(f"@{step}") for text in measured.attacks)


def name_outside_linf(text: str, eps: float) -> str:
    """`pgd10`, or `pgd10@0.5` with a step that is not the usual one, in the radius's unit."""
    name, _, step = text.partition("@")
    if not step:
        return name
    usual = step_outside_linf(int(name.removeprefix("pgd").partition("-")[0]), eps)
    own = float(step) / 255
    return name if math.isclose(own, usual, rel_tol=1e-4) else f"{name}@{own:.4g}"


# What a measurement adds to its files' names where it is not the usual one, in this order.
PARTS: dict[str, Callable[[Measurement, Measurement], str]] = {
    "checkpoint_name": lambda m, _: f"_{file_stem(m.checkpoint_name)}",
    "network": lambda m, _: f"_{m.network}",
    "attacks": attacks_part,
    "corruptions": lambda m, _: f"_{m.corruptions}",
    "subset": lambda m, _: f"_{m.subset}",
    "eps": lambda m, _: f"_eps{radius_number(m.eps, m.norm)}",
    "norm": lambda m, _: f"_{m.norm}",
    "resize": lambda m, _: f"_resize{m.resize or 0}",
    "crop": lambda m, _: f"_crop{m.crop}",
    "precision": lambda m, _: f"_{m.precision}",
    "scales": lambda m, _: "_scales" + "+".join(f"{scale:g}" for scale in m.scales),
    "seed": lambda m, _: f"_seed{m.seed}",
    "class_order": lambda m, _: f"_{m.class_order}_order",
    "transfer_name": lambda m, _: f"_from_{file_stem(m.transfer_name)}",
    "cascade": lambda *_: "_cascade",
}


def filename_suffix(measured: Measurement, usual: Measurement) -> str:
    """What tells a measurement from the usual one: `_pgd10_n500_eps8_seed1`.

    Args:
        usual: the same network under its training's own settings, with all defaults.
    """
    return "".join(
        part(measured, usual)
        for name, part in PARTS.items()
        if getattr(measured, name) != getattr(usual, name)
    )
