"""Text that others have written (names of files, classes, runs), made safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """On one line, without control characters; bytes that are no UTF-8 as `\\udcff`."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
