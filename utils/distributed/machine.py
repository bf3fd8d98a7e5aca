"""What one machine gives the processes of a command that run on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine_identity() -> str:
    """What tells this machine from others, those of the same name included."""
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    return f"{platform.node()} {boot}"


def allowed_cores() -> frozenset[int]:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return frozenset(affinity(0)) if affinity else frozenset(range(os.cpu_count() or 1))


def share_of_cores(own: frozenset[int], of_all: Sequence[frozenset[int]]) -> int:
    """The cores that fall to one process, at least one.

    Args:
        own: those that it may use.
        of_all: those that each process of this machine may use, this one's among them. A
            launcher gives all the same cores, as torchrun does, or each its own, as srun may.
    """
    shares = sum(1 / sum(core in cores for cores in of_all) for core in own)
    return max(1, int(shares + 1e-6))
