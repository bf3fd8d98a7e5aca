"""The CSV files that runs leave, as what figures are drawn from."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.errors import UserError

Rows = Sequence[Mapping[str, str]]


def read_rows(path: Path, columns: Sequence[str], hint: str) -> list[dict[str, str]]:
    """A CSV file's rows.

    Args:
        columns: headers that it must have.
        hint: how such a file comes about, for the error.

    Raises:
        UserError: no such file, no rows, or other columns.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a table"
        raise UserError(f"cannot read {path}: {reason}; {hint}") from error
    if not rows:
        raise UserError(f"{path} has no rows yet; {hint}")
    absent = [name for name in columns if name not in rows[0]]
    if absent:
        raise UserError(f"{path} has no column {', '.join(absent)}; {hint}")
    return rows


def series(rows: Rows, column: str) -> list[float]:
    """A column as numbers; an empty field is not drawn (nan).

    Raises:
        UserError: a field that is no number.
    """
    try:
        return [float(row.get(column) or "nan") for row in rows]
    except ValueError as error:
        raise UserError(
            f"the column {column} holds something else than numbers: {error}"
        ) from error
