"""Values of several runs in tables, without mixing what does not compare.

Values of one measure share a column only where all their conditions agree, and a table holds
columns of one list of images: a check on a few images never stands beside full evaluations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tools.comparison_values import MCE, MEAN, MEAN_OF_OTHERS, Column, Conditions, Value
from utils.errors import UserError

# Attacks: 1; shifted test sets: last.
POSITIONS = {"Clean": 0, "Worst case": 2, MEAN: 3, MEAN_OF_OTHERS: 3, MCE: 4}


@dataclass(frozen=True)
class Table:
    """Named rows, columns with their titles, the value where a row has one in a column.

    Attributes:
        title: the images, of any table but the first.
    """

    title: str
    names: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, Column], Value]

    def headers(self) -> list[str]:
        """The columns' titles, with what distinguishes their conditions."""
        return [header(column, self.columns) for column in self.columns]


def build_tables(
    rows: Mapping[str, Sequence[Value]], published: Mapping[str, Sequence[Value]], mixed: bool
) -> list[Table]:
    """Lay out the values: first the largest evaluations, then those of other images.

    Args:
        rows: by name.
        published: further rows, whose values stand in columns of `rows`.
        mixed: let a measure have several columns although two rows then share none.

    Raises:
        UserError: without `mixed`, two rows have a measure under no common conditions.
    """
    values = [value for each in rows.values() for value in each]
    columns = [value.column for value in values]
    measures = list(dict.fromkeys(c.measure for c in sorted(columns, key=position_of)))
    if not mixed:
        for measure in measures:
            refuse_mixture(measure, rows)
    tables = []
    for title, images in image_lists(values):
        inside = dict.fromkeys(column for column in columns if column.images in images)
        ordered = sorted(inside, key=lambda c: (measures.index(c.measure), radius_of(c)))
        cells = {
            (name, value.column): value
            for name, each in (*rows.items(), *published.items())
            for value in each
            if value.column in inside
        }
        names = dict.fromkeys(name for name, _ in cells)
        tables.append(Table(title, tuple(names), tuple(ordered), cells))
    return tables


def position_of(column: Column) -> int:
    """Where its measure stands among a table's columns."""
    return POSITIONS.get(column.measure, 1 if column.kind == "attack" else 5)


def radius_of(column: Column) -> float:
    """The number of its eps, `4/255` or `0.5 (L2)`; 0 where it has none."""
    return float(re.split("[/ ]", column.condition("eps") or "0")[0])


def image_lists(values: Sequence[Value]) -> list[tuple[str, set[tuple[str, str]]]]:
    """(title, {(kind, image list)}) of each table: the largest list of every kind comes first."""
    largest = sorted(values, key=lambda value: -value.n)
    lists = {value.column.images: value.column.condition("images") for value in largest}
    main = set({kind: images for kind, images in reversed(lists)}.items())
    rest = {each: title for each, title in lists.items() if each not in main}
    named = ((f"{KINDS.get(each[0], each[0])} {rest[each]}".strip(), {each}) for each in rest)
    return [("", main), *named]


KINDS = {"attack": "", "imagenet_c": "corruptions,"}


def refuse_mixture(measure: str, rows: Mapping[str, Sequence[Value]]) -> None:
    """Every two rows must have a measure under some common conditions."""
    having = {}
    for name, values in rows.items():
        if own := [v.column.conditions for v in values if v.column.measure == measure]:
            having[name] = own
    for name, mine in having.items():
        for other, theirs in having.items():
            if not set(mine) & set(theirs):
                aspects = differing_aspects([mine[0], theirs[0]])
                this, that = (", ".join(describe(c, aspects)) for c in (mine[0], theirs[0]))
                raise UserError(
                    f"{measure} of {name} ({this}) and of {other} ({that}) do not compare; evaluate"
                    " both alike, or give --allow_mixed for a column each"
                )


def differing_aspects(conditions: Iterable[Conditions]) -> list[str]:
    """The aspects that some of these have, and not all alike."""
    found: dict[str, set[str]] = {}
    for aspect, text in (pair for each in conditions for pair in each):
        found.setdefault(aspect, set()).add(text)
    return [aspect for aspect, texts in found.items() if len(texts) > 1]


def header(column: Column, columns: Sequence[Column]) -> str:
    """The column's title: the measure, and every condition that columns of its kind differ in.

    The attacks behind a worst case make a long title, so they are named where nothing else differs.
    """
    siblings = [other for other in columns if other.kind == column.kind]
    aspects = differing_aspects(other.conditions for other in siblings)
    short = [aspect for aspect in aspects if aspect != "over"]
    titles = [describe(c.conditions, short) for c in siblings if c.measure == column.measure]
    title = describe(column.conditions, short)
    if titles.count(title) > 1:
        title = describe(column.conditions, aspects)
    return ", ".join([column.measure, *title])


def describe(conditions: Conditions, aspects: Sequence[str]) -> list[str]:
    """These aspects of the conditions in words, such as `eps 4/255`.

    The list of images has only its hash for a name, so it is named where nothing else differs.
    """
    plain = [aspect for aspect in aspects if aspect != "image list"] or aspects
    return [
        text if aspect in ("images", "input") else f"{aspect} {text}"
        for aspect, text in conditions
        if aspect in plain
    ]
