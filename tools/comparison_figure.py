"""A comparison's tables as the panels of its figure."""

from __future__ import annotations

from collections.abc import Sequence

from tools.comparison_table import Table
from tools.comparison_values import MCE, Value
from utils.figures.comparison import Dot, Panel


def panels_of(tables: Sequence[Table]) -> list[Panel]:
    """The figure's panels: accuracies of each table, then mCE, where less is better."""
    panels = []
    for table in tables:
        columns = [
            (title, {n: dot(table.cells[n, c]) for n in table.names if (n, c) in table.cells})
            for title, c in zip(table.headers(), table.columns, strict=True)
        ]
        is_error = [column.measure == MCE for column in table.columns]
        shares = [column for column, error in zip(columns, is_error, strict=True) if not error]
        errors = [column for column, error in zip(columns, is_error, strict=True) if error]
        if shares:
            panels.append(Panel(table.title, "top-1 accuracy (%)", shares))
        if errors:
            panels.append(Panel(table.title, "mCE (%), less is better", errors, is_share=False))
    return panels


def dot(value: Value) -> Dot:
    """A value as it is drawn."""
    return Dot(value.percent, value.interval, value.spread)
