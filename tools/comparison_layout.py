"""Which values stand in which tables and columns, and what the columns are called.

A table holds columns of one list of images: a check on a few images never stands beside full
evaluations.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from tools.comparison import CORRUPTIONS, Column, Row, Value
from utils.errors import UserError

KINDS = {
    "attack": "",
    "imagenet_c": "corruptions, ",
    CORRUPTIONS: "each corruption, mean over the severities, ",
}


@dataclass(frozen=True)
class Table:
    """Rows over columns, whose titles name what distinguishes their conditions."""

    title: str
    columns: Mapping[Column, str]
    rows: Sequence[Row]

    @property
    def entries(self) -> Iterator[tuple[Row, Column, Value]]:
        """Row by row."""
        for row in self.rows:
            yield from ((row, c, row.values[c]) for c in self.columns if c in row.values)


def columns_in_order(rows: Sequence[Row], wanted: Sequence[str] | None) -> list[Column]:
    """The columns meant, by measure, attack or kind, or how its name begins; else all of them."""
    known: dict[Column, list[str]] = {}
    for column, value in (pair for row in rows for pair in row.values.items()):
        texts = (column.measure, column.title, value.outcomes, column.kind)
        known.setdefault(column, []).extend(map(squeezed, texts))
    measures = list(dict.fromkeys(c.measure for c in sorted(known, key=lambda c: c.place)))
    usual = sorted(known, key=lambda c: (measures.index(c.measure), c.radius))
    if wanted is None:
        return usual
    chosen: dict[Column, None] = {}
    for name in wanted:
        pattern = re.escape(squeezed(name)) + r"(?!\d)"  # pgd10 is not pgd100
        meant = [c for c in usual if any(re.match(pattern, text) for text in known[c])]
        if not meant or not squeezed(name):
            titles = ", ".join(dict.fromkeys(column.title for column in usual))
            raise UserError(f"--columns {name}: no such column; there are {titles}")
        chosen |= dict.fromkeys(meant)
    return list(chosen)


def squeezed(text: str) -> str:
    """Its letters and digits."""
    return re.sub(r"[\W_]", "", text.lower())


def build_tables(rows: Sequence[Row], columns: Sequence[Column]) -> list[Table]:
    """First the largest evaluations, then those of other images; columns in the order given."""
    largest: dict[str, str] = {}  # list of images by kind of evaluation
    groups: dict[tuple[str, str], list[Column]] = {}
    for column in sorted(columns, key=lambda c: -c.n):
        images = column.condition("image list")
        is_largest = largest.setdefault(column.kind, images) == images
        is_main = is_largest and column.kind != CORRUPTIONS
        groups.setdefault(("", "") if is_main else (column.kind, images), []).append(column)
    tables = []
    for (kind, _), group in groups.items():
        title = KINDS.get(kind, f"{kind} ") + group[0].condition("images") if kind else ""
        titles = {c: column_title(c, group) for c in sorted(group, key=columns.index)}
        tables.append(Table(title, titles, [r for r in rows if r.values.keys() & titles.keys()]))
    return tables


def column_title(column: Column, columns: Sequence[Column]) -> str:
    """The measure, and every condition that columns of its kind differ in."""
    siblings = [other for other in columns if other.kind == column.kind]
    aspects = differing_aspects(siblings)

    def title(of: Column) -> str:
        return ", ".join([of.title, *of.describe(set(aspects) - {"over"})])

    if [title(sibling) for sibling in siblings].count(title(column)) == 1:
        return title(column)
    return ", ".join([column.title, *column.describe(aspects)])


def differing_aspects(columns: Sequence[Column]) -> list[str]:
    """The aspects that some of these have, and not all alike."""
    texts: dict[str, set[str]] = {}
    for aspect, text in (pair for column in columns for pair in column.conditions):
        texts.setdefault(aspect, set()).add(text)
    return [aspect for aspect, different in texts.items() if len(different) > 1]


def refuse_mixture(rows: Sequence[Row]) -> None:
    """Every two rows must have each measure of both under some common conditions."""
    measures = dict.fromkeys(column.measure for row in rows for column in row.values)
    for measure, pair in product(measures, combinations(rows, 2)):
        first, second = ([c for c in row.values if c.measure == measure] for row in pair)
        if not first or not second or set(first) & set(second):
            continue
        aspects = differing_aspects([first[0], second[0]])
        shown = [aspect for aspect in aspects if aspect != "image list"] or aspects
        one, other = (
            f"{row.name} ({', '.join(column.describe(shown)) or f'no {shown[0]}'})"
            for row, column in zip(pair, (first[0], second[0]), strict=True)
        )
        raise UserError(
            f"{measure} of {one} and of {other} do not compare; evaluate both alike, or give"
            " --allow_mixed for a column each"
        )
