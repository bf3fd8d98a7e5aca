"""Results that others have published, where they were taken under the conditions of a column."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tools.comparison_values import Column, Value

FILE = Path(__file__).with_name("published_results.json")


def published_rows(columns: Iterable[Column]) -> tuple[dict[str, list[Value]], list[str]]:
    """The published values that stand in these columns.

    Returns:
        the values by row; and notes with each row's source, and with what has no column.
    """
    columns = list(columns)
    rows, sources, elsewhere = {}, [], []
    for row in json.loads(FILE.read_text(encoding="utf-8"))["rows"]:
        found = [value for entry in row["values"] for value in in_columns(entry, columns, row)]
        if found:
            rows[row["name"]] = found
            sources.append(f"{row['name']}: published, {row['source']}.")
        matched = {value.column.measure for value in found}
        absent = dict.fromkeys(described(e) for e in row["values"] if e["measure"] not in matched)
        elsewhere += [f"{row['name']}: {', '.join(absent)}"] if absent else []
    notes = [*sources, "Published, but of no column's conditions: " + "; ".join(elsewhere) + "."]
    return rows, notes if elsewhere else sources


def in_columns(
    entry: Mapping[str, Any], columns: Iterable[Column], row: Mapping[str, Any]
) -> list[Value]:
    """One published value, once for every column that it belongs into."""
    return [
        Value(entry["percent"], n=entry["n"], source=row["source"], column=column)
        for column in columns
        if column.measure == entry["measure"] and agree(entry["conditions"], column)
    ]


def agree(wanted: Mapping[str, Any], column: Column) -> bool:
    """Whether every condition holds in a column: a text that it is or, of images, that it names."""

    def holds(aspect: str, text: str) -> bool:
        own = column.condition(aspect)
        return text == own or (aspect == "images" and text in own)

    return all(
        any(holds(aspect, text) for text in (given if isinstance(given, list) else [given]))
        for aspect, given in wanted.items()
    )


def described(entry: Mapping[str, Any]) -> str:
    """`AutoAttack at eps 4/255`."""
    eps = entry["conditions"].get("eps")
    return f"{entry['measure']} at eps {eps}" if eps else str(entry["measure"])
