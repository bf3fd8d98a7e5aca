"""Text for people: tables, plurals, and names that others have written made safe to show."""

from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    """On one line, without control characters, which could forge what a terminal shows."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def counted(number: int, noun: str, ending: str = "s") -> str:
    """`1 pass`, `4 passes`."""
    return f"{number} {noun}" + ending * (number != 1)


def shortlist(names: Sequence[str], most: int = 3) -> str:
    """The first few names and how many more, fit to be shown."""
    rest = len(names) - most
    return ", ".join(map(printable, names[:most])) + (f" and {rest} more" if rest > 0 else "")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns aligned for a terminal: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, [header, ["-" * width for width in widths], *rows]))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool) -> str:
    """The same as Markdown; to the left are all columns where they hold no numbers."""

    def line(cells: Sequence[str]) -> str:
        escaped = (cell.replace("|", r"\|") for cell in cells)
        return "|" + "".join(f" {cell} |" if cell else " |" for cell in escaped)

    rule = "|---|" + ("---:|" if numbers else "---|") * (len(header) - 1)
    return "\n".join([line(header), rule, *map(line, rows)])
