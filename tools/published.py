"""Results that others have published, where they were taken under the conditions of a column."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.comparison import Column, Value, Values

FILE = Path(__file__).with_name("published_results.json")


def published_rows(columns: Mapping[Column, int]) -> tuple[dict[str, Values], list[str]]:
    """The published values that stand in these columns."""
    rows: dict[str, Values] = {}
    sources, elsewhere = [], []
    for row in json.loads(FILE.read_text(encoding="utf-8"))["rows"]:
        values = {
            column: Value(entry["percent"], n=entry["n"], source=row["source"])
            for entry in row["values"]
            for column, n in columns.items()
            if n == entry["n"]
            and same_name(column.measure, entry["measure"])
            and agree(entry["conditions"], column)
        }
        if values:
            rows[row["name"]] = values
            sources.append(f"{row['name']}: published, {row['source']}.")
        absent = dict.fromkeys(
            described(entry)
            for entry in row["values"]
            if not any(same_name(column.measure, entry["measure"]) for column in values)
        )
        elsewhere += [f"{row['name']}: {', '.join(absent)}"] if absent else []
    notes = [*sources, "Published, but of no column's conditions: " + "; ".join(elsewhere) + "."]
    return rows, notes if elsewhere else sources


def same_name(measure: str, published: str) -> bool:
    """Whether two measures are one, such as `imagenet-a, of its 200 classes` of a folder's name."""
    squeezed = (re.sub(r"[\W_]", "", text.lower()) for text in (measure, published))
    mine, theirs = (text.replace("matchedfrequencyformatval", "") for text in squeezed)
    return mine == theirs


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
