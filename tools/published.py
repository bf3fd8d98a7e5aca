"""Results that others have published, where they were taken under the conditions of a column."""

import json
from collections.abc import Sequence
from pathlib import Path

from tools.comparison import Column, Row, Value
from tools.comparison_layout import squeezed

FILE = Path(__file__).with_name("published_results.json")
ARCHIVE = "matchedfrequencyformatval"  # what ImageNet-V2's folder is called beyond its name


def published_rows(columns: Sequence[Column]) -> tuple[list[Row], list[str]]:
    """The published values that stand in these columns, and notes on all that there are."""
    rows, sources, elsewhere = [], [], []
    for published in json.loads(FILE.read_text(encoding="utf-8"))["rows"]:
        row = Row({}, published["name"])
        absent: dict[str, None] = {}
        for entry in published["values"]:
            measure, conditions = squeezed(entry["measure"]), entry["conditions"].items()
            alike = [
                column
                for column in columns
                if column.n == entry["n"]
                and squeezed(column.measure).replace(ARCHIVE, "") == measure
                and conditions <= dict(column.conditions).items()
            ]
            value = Value(percent=entry["percent"], source=published["source"])
            row.values |= dict.fromkeys(alike, value)
            if not alike:
                eps = entry["conditions"].get("eps")
                absent[entry["measure"] + (f" at eps {eps}" if eps else "")] = None
        if row.values:
            rows.append(row)
            sources.append(f"{row.name}: published, {published['source']}.")
        elsewhere += [f"{row.name}: {', '.join(absent)}"] if absent else []
    if elsewhere:
        sources.append(f"Published, but of no column's conditions: {'; '.join(elsewhere)}.")
    return rows, sources
