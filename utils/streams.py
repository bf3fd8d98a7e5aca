"""Standard streams that a command outlives: closed, full, without a reader, or for ASCII alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class LastingStream:
    """A text stream that falls silent where writing to it fails; the work matters more.

    Args:
        stream: sys.stdout or sys.stderr; None where the command was started without.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream: Any = stream or open(os.devnull, "w", encoding="utf-8")
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self.attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self.attempt(self.stream.flush)

    def attempt(self, work: Callable[[], object]) -> None:
        """Do it; after a failure everything, what is buffered as well, goes to the null device."""
        try:
            work()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Within the block nothing that is printed can end the command."""
    fill_standard_descriptors()
    before = sys.stdout, sys.stderr
    ours = LastingStream(sys.stdout), LastingStream(sys.stderr)
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        for stream in ours:
            stream.flush()
        sys.stdout, sys.stderr = before


def fill_standard_descriptors() -> None:
    """Open what is closed of 0, 1 and 2, or the next files would be what processes print to."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
