"""When and with what a number was made: versions, time, processor."""

import datetime
import platform
from contextlib import suppress
from importlib import metadata

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
