"""Text that others have written (names of files, classes, runs), made safe to show; plurals."""

from collections.abc import Sequence


def printable(text: str) -> str:
    """On one line, without control characters; bytes that are no UTF-8 as `\\udcff`.

    Those would move the cursor or forge what a terminal shows.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The same of each line."""
    return "\n".join(map(printable, text.split("\n")))


def counted(number: int, noun: str, ending: str = "s") -> str:
    """`1 pass`, `4 passes`."""
    return f"{number} {noun}" + ending * (number != 1)


def shortlist(names: Sequence[str], most: int = 3) -> str:
    """The first few names and how many more, fit to be shown."""
    rest = len(names) - most
    return ", ".join(map(printable, names[:most])) + (f" and {rest} more" if rest > 0 else "")
