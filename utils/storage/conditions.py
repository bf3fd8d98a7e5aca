"""The conditions of an evaluation, which name its file; its versions, time and processor."""

import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

BY_FILE = "CLASS/FILE"  # what a random start of PGD depends on beside the seed
PGD_ALONE = (
    "an upper bound of the robust accuracy: APGD or AutoAttack usually leaves"
    " less; run evaluate.py -e --attack apgd (pip install -r requirements-extra.txt)"
)
LONGEST_NAME = 180  # bytes; file systems take 255, endings and numbers of processes come on top
PACKAGES = ("torch", "torchvision", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Everything that can change a number; two evaluations that differ in it share no file."""

    kind: str  # of `run_folder.KINDS`
    protocol: str
    checkpoint: str  # SHA-256 of the network's file or weights
    images: str  # SHA-256 of the list of images
    resize: int | None  # shorter side before the crop, pixels; None: not resized
    crop: int
    network: str = ""  # what flags say of a network whose file does not
    checkpoint_file: str = ""  # its name; empty for a run's best model
    attacks: tuple[str, ...] = ()  # names with their steps, see `attack_text`
    folders: str = ""  # corruptions other than the 15, or shifted test sets: `snow+fog`
    subset: str = ""  # `n500` or `ids1a2b3c4d`; empty for all images
    eps: float = 0.0  # in [0, 1] for Linf
    norm: str = "Linf"
    precision: str = "fp32"
    seed: int = 0
    surrogate: str = ""  # SHA-256 of the network that was attacked, where it is another one
    cascade: bool = False  # each attack saw only what the ones before had left robust
    interpolation: str = "bilinear"  # of the resize
    starts: str = ""  # what random ones are drawn by; empty: by number in the list, as once

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that tell these conditions from any other."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def file_name(self, usual: Mapping[str, Any]) -> str:
        """`attack_standard_pgd50_eps8_seed1`: what differs from what is usual for the network."""
        first_step = next(iter(usual.get("attacks", ())), "").partition("@")[2]
        parts = {
            "checkpoint_file": file_stem(self.checkpoint_file),
            "attacks": "+".join(text.removesuffix(f"@{first_step}") for text in self.attacks),
            "folders": self.folders,
            "subset": self.subset,
            "eps": f"eps{length_number(self.eps, self.norm)}",
            "norm": self.norm,
            "resize": f"resize{self.resize or 0}",
            "crop": f"crop{self.crop}",
            "interpolation": self.interpolation,
            "precision": self.precision,
            "seed": f"seed{self.seed}",
            "surrogate": f"from_{self.surrogate[:8]}",
            "cascade": "cascade",
        }
        defaults = {**vars(Conditions), **usual}
        differing = [part for name, part in parts.items() if getattr(self, name) != defaults[name]]
        start = f"{self.kind}_{self.protocol}"
        name = "_".join([start, *differing])
        return name if len(os.fsencode(name)) <= LONGEST_NAME else f"{start}_{self.digest}"


def worst_of(attacks: Iterable[str]) -> str:
    """`worst of PGD, APGD`: what a worst case over attacks of these names or texts is over."""
    known = {"pgd": "PGD", "autoattack": "AutoAttack", "square": "Square"}
    names = [re.split(r"[@\d]", text)[0] for text in attacks]
    return "worst of " + ", ".join(dict.fromkeys(known.get(n, n.upper()) for n in names))


def attack_text(name: str, step_size: float, norm: str = "Linf") -> str:
    """`pgd10@1`: an attack and its step, in 1/255 under Linf; the bare name where it has none."""
    name = name.partition("@")[0]
    return f"{name}@{length_number(step_size, norm)}" if step_size else name


def file_stem(path: str) -> str:
    """A checkpoint's file name without its ending, `.pth.tar`, `.pt` or another."""
    return Path(path.removesuffix(".tar")).stem


def length_number(length: float, norm: str = "Linf") -> str:
    """`4` for a radius or step of 4/255 under Linf; the length itself under other norms."""
    # Six digits: 0.00392157, as published files have it, is 1/255.
    return f"{255 * length if norm == 'Linf' else length:.6g}"


def length_text(length: float, norm: str = "Linf") -> str:
    """`4/255` under Linf; `0.5 (L2)`."""
    return length_number(length, norm) + unit_of(norm)


def unit_of(norm: str) -> str:
    """What stands behind the number of a radius or step."""
    return "/255" if norm == "Linf" else f" ({norm})"


def versions(*others: str) -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on; of others if present."""
    found = {"python": platform.python_version(), **{p: metadata.version(p) for p in PACKAGES}}
    for name in others:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def suite() -> dict[str, Any]:
    """The suite's commit and whether its files were changed since; nothing outside a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        words = "git", "-C", str(root), *words
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        if (root / ".git").exists():
            changes = git("status", "--porcelain", "--untracked-files=no")
            return {"commit": git("rev-parse", "HEAD"), "changed": bool(changes)}
    return {}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def processor() -> str:
    """The processor's name."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
