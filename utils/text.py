"""Text that others have written (names of files, classes, runs), made safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """On one line, without control characters; bytes that are no UTF-8 as `\\udcff`.

    Those would move the cursor or forge what a terminal shows.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The same of each line."""
    return "\n".join(map(printable, text.split("\n")))
