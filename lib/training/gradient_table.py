"""gradient_norms.csv: the ratios of every epoch, one row a parameter."""

from __future__ import annotations

import csv
from pathlib import Path

from lib.algorithm.gradient_norms import (
    HEADER,
)
from utils.storage.files import write_csv


def write_rows(path: Path, epoch: int, rows: list[list]) -> None:
    """Put an epoch's rows into gradient_norms.csv, after those of the epochs before it.

    Rows of this and later epochs, left by a run that was interrupted, give way. There is no file
    without rows.
    """
    kept: list[list] = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            kept = [row for row in list(csv.reader(file))[1:] if int(row[0]) < epoch]
    if kept or rows:
        write_csv(path, HEADER, kept + rows)
    else:
        path.unlink(missing_ok=True)
