"""Results that others have published, where they were taken under the conditions of a column."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tools.comparison import Column, Value, Values

FILE = Path(__file__).with_name("published_results.json")


def published_rows(columns: Collection[Column]) -> tuple[dict[str, Values], list[str]]:
    """The published values that stand in these columns."""
    rows: dict[str, Values] = {}
    sources, elsewhere = [], []
    for row in json.loads(FILE.read_text(encoding="utf-8"))["rows"]:
        values = {
            column: Value(entry["percent"], n=entry["n"], source=row["source"])
            for entry in row["values"]
            for column in columns
            if column.measure == entry["measure"] and agree(entry["conditions"], column)
        }
        if values:
            rows[row["name"]] = values
            sources.append(f"{row['name']}: published, {row['source']}.")
        matched = {column.measure for column in values}
        absent = dict.fromkeys(described(e) for e in row["values"] if e["measure"] not in matched)
        elsewhere += [f"{row['name']}: {', '.join(absent)}"] if absent else []
    notes = [*sources, "Published, but of no column's conditions: " + "; ".join(elsewhere) + "."]
    return rows, notes if elsewhere else sources


def agree(wanted: Mapping[str, Any], column: Column) -> bool:
    """Whether every condition holds in a column: a text that it is or, of images, that it names."""

    def holds(aspect: str, text: str) -> bool:
        present = column.condition(aspect)
        return text == present or (aspect == "images" and text in present)

    return all(
        any(holds(aspect, text) for text in (texts if isinstance(texts, list) else [texts]))
        for aspect, texts in wanted.items()
    )


def described(entry: Mapping[str, Any]) -> str:
    """`AutoAttack at eps 4/255`."""
    eps = entry["conditions"].get("eps")
    return f"{entry['measure']} at eps {eps}" if eps else str(entry["measure"])
