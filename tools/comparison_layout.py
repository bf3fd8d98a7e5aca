"""Which values stand in which tables and columns, and what the columns are called."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

from tools.comparison import CORRUPTIONS, Column, Texts, Value, Values
from utils.errors import UserError

KINDS = {
    "attack": "",
    "imagenet_c": "corruptions, ",
    CORRUPTIONS: "each corruption, mean over the severities, ",
}


@dataclass(frozen=True)
class Table:
    """Named rows over columns, whose titles name what distinguishes their conditions."""

    title: str
    columns: Mapping[Column, str]
    rows: Mapping[str, Values]
    effect: Mapping[str, Values] = field(default_factory=dict)  # a row below them, or none

    @property
    def values(self) -> Iterator[tuple[str, Column, Value]]:
        """Row by row."""
        for name, values in {**self.rows, **self.effect}.items():
            yield from ((name, c, values[c]) for c in self.columns if c in values)


def select_columns(rows: Mapping[str, Values], wanted: Sequence[str]) -> list[Column]:
    """The columns meant, in this order: by measure, attack or kind, or how its name begins."""
    known: dict[Column, list[str]] = {}
    for column, value in (pair for values in rows.values() for pair in values.items()):
        texts = (column.measure, column.title, value.outcomes, column.kind)
        known.setdefault(column, []).extend(map(squeezed, texts))
    chosen: dict[Column, None] = {}
    for name in wanted:
        pattern = re.escape(squeezed(name)) + r"(?!\d)"  # pgd10 is not pgd100
        found = [c for c, texts in known.items() if any(re.match(pattern, t) for t in texts)]
        if not found or not squeezed(name):
            there = ", ".join(dict.fromkeys(column.title for column in known))
            raise UserError(f"--columns {name}: no such column; there are {there}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def squeezed(text: str) -> str:
    """Its letters and digits."""
    return re.sub(r"[\W_]", "", text.lower())


def build_tables(
    rows: Mapping[str, Values],
    published: Mapping[str, Values],
    effect: Mapping[str, Values],
    order: Sequence[Column] = (),
) -> list[Table]:
    """Lay out the values: first the largest evaluations, then those of other images.

    Columns stand in the order given, if one is.
    """
    sizes: dict[Column, int] = {}
    for column, value in (pair for values in rows.values() for pair in values.items()):
        sizes[column] = max(value.n, sizes.get(column, 0))
    measures = list(dict.fromkeys(c.measure for c in sorted(sizes, key=lambda c: c.place)))
    largest: dict[str, str] = {}  # list of images by kind of evaluation
    groups: dict[tuple[str, str], list[Column]] = {}
    for column in sorted(sizes, key=lambda c: -sizes[c]):
        images = column.condition("image list")
        is_largest = largest.setdefault(column.kind, images) == images
        is_main = is_largest and column.kind != CORRUPTIONS
        key = ("", "") if is_main else (column.kind, images)
        groups.setdefault(key, []).append(column)

    def usual(column: Column) -> tuple[float, float]:
        return measures.index(column.measure), column.radius

    tables = []
    for (kind, _), columns in groups.items():
        title = KINDS.get(kind, f"{kind} ") + columns[0].condition("images") if kind else ""
        ordered = [column for column in sizes if column in columns]
        ordered.sort(key=order.index if order else usual)
        headers = {column: header(column, ordered) for column in ordered}
        inside, below = (
            {name: v for name, v in rows.items() if v.keys() & headers.keys()}
            for rows in ({**rows, **published}, effect)
        )
        tables.append(Table(title, headers, inside, below))
    return tables


def refuse_mixture(rows: Mapping[str, Values]) -> None:
    """Every two rows must have each measure of both under some common conditions."""
    measures = dict.fromkeys(column.measure for values in rows.values() for column in values)
    for measure, pair in product(measures, combinations(rows, 2)):
        both = [[c.conditions for c in rows[name] if c.measure == measure] for name in pair]
        if all(both) and not set(both[0]) & set(both[1]):
            first = [conditions[0] for conditions in both]
            aspects = differing_aspects(first, or_lack=True)
            lacking = ([f"no {a}" for a in aspects if a not in dict(c)] for c in first)
            texts = [
                ", ".join(describe(c, aspects) + no) for c, no in zip(first, lacking, strict=True)
            ]
            raise UserError(
                f"{measure} of {pair[0]} ({texts[0]}) and of {pair[1]} ({texts[1]}) do not compare;"
                " evaluate both alike, or give --allow_mixed for a column each"
            )


def differing_aspects(conditions: Iterable[Texts], or_lack: bool = False) -> list[str]:
    """The aspects that some of these have, and not all alike; or that one of them lacks."""
    all_texts = [dict(texts) for texts in conditions]
    aspects = dict.fromkeys(aspect for texts in all_texts for aspect in texts)
    values = {a: {texts[a] for texts in all_texts if a in texts} for a in aspects}
    lacking = {a for a in aspects if or_lack and not all(a in texts for texts in all_texts)}
    return [a for a in aspects if len(values[a]) > 1 or a in lacking]


def header(column: Column, columns: Sequence[Column]) -> str:
    """The column's title: the measure, and every condition that columns of its kind differ in."""
    siblings = [other for other in columns if other.kind == column.kind]
    alike = [other.conditions for other in siblings if other.title == column.title]
    aspects = differing_aspects(other.conditions for other in siblings)
    aspects += differing_aspects(alike, or_lack=True)
    short = [aspect for aspect in aspects if aspect != "over"]
    titles = [[c.title, *describe(c.conditions, short)] for c in siblings]
    title = [column.title, *describe(column.conditions, short)]
    if titles.count(title) > 1:
        title = [column.title, *describe(column.conditions, aspects)]
    return ", ".join(title)


def describe(conditions: Texts, aspects: Sequence[str]) -> list[str]:
    """These aspects of the conditions in words, such as `eps 4/255`."""
    plain = [aspect for aspect in aspects if aspect != "image list"] or aspects
    return [
        text if aspect in ("images", "input") else f"{aspect} {text}"
        for aspect, text in conditions
        if aspect in plain
    ]
