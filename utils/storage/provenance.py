"""When and with what a number was made: versions, time, processor."""

import datetime
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "numpy", "pillow")


def versions(*others: str) -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on; of others if present."""
    found = {"python": platform.python_version(), **{p: metadata.version(p) for p in PACKAGES}}
    for name in others:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def suite() -> dict[str, Any]:
    """The suite's commit and whether its files were changed since; nothing outside a checkout."""

    def git(*words: str) -> str:
        words = "git", "-C", str(ROOT), *words
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        if (ROOT / ".git").exists():
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
