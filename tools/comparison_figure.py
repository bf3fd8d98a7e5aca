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
        for axis, is_error in (("top-1 accuracy (%)", False), ("mCE (%), less is better", True)):
            columns = [
                (title, {n: dot(table.cells[n, c]) for n in table.names if (n, c) in table.cells})
                for title, c in zip(table.headers(), table.columns, strict=True)
                if (c.measure == MCE) == is_error
            ]
            if columns:
                panels.append(Panel(table.title, axis, columns, is_share=not is_error))
    return panels


def dot(value: Value) -> Dot:
    return Dot(value.percent, value.interval, value.spread)
