"""Where a number comes from: command, settings, checkpoint, versions."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from typing import Any

from utils.config.settings import Config

PACKAGES = ("torch", "torchvision", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in PACKAGES}}


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


def provenance(
    config: Config, checkpoint: Mapping[str, Any], subset: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """What every result file says of its origin.

    Args:
        config: the parsed configuration.
        checkpoint: path, sha256, arch, FN, WN, s_HE, angular_margin_HE.
        subset: description, n, and sha256 of the image ids.
        device: a name such as `cpu`, or the GPU's.
    """
    return {
        "command": config.OPTIONS.command,
        "config": config.as_dict(),
        "checkpoint": dict(checkpoint),
        "protocol": config.EVAL.protocol,
        "precision": config.EVAL.precision,
        "eps": config.eps,
        "seed": config.RUN.seed,
        "subset": dict(subset),
        "device": device,
        "versions": versions(),
        "date": now(),
    }
