"""Values of several runs in one table, without mixing what does not compare.

Values of one measure share a column only where all their conditions agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from utils.errors import UserError
from utils.storage.results import Conditions, Row, Value

POSITIONS = {"Clean": 0, "Worst case": 2, "ImageNet-C mean": 3, "mCE": 4}  # attacks: 1


@dataclass(frozen=True)
class Column:
    """One measure under one set of conditions."""

    measure: str
    conditions: Conditions


def choose_columns(
    rows: Mapping[Row, list[Value]], names: Sequence[str], mixed: bool
) -> list[Column]:
    """The columns in order: each measure, once for each set of conditions.

    Args:
        rows: the values.
        names: a name per row, for the message.
        mixed: let a measure have several columns although two runs then share none.

    Raises:
        UserError: without `mixed`, two runs have a measure under no common conditions.
    """
    columns = dict.fromkeys(
        Column(value.measure, value.conditions) for values in rows.values() for value in values
    )
    order = list(dict.fromkeys(column.measure for column in columns))
    order.sort(key=lambda measure: POSITIONS.get(measure, 1))
    if not mixed:
        for measure in order:
            refuse_mixture(measure, rows, names)
    return sorted(columns, key=lambda column: order.index(column.measure))


def refuse_mixture(measure: str, rows: Mapping[Row, list[Value]], names: Sequence[str]) -> None:
    """Every two runs must have a measure under some common conditions."""
    having = {}
    for name, values in zip(names, rows.values(), strict=True):
        if conditions := [value.conditions for value in values if value.measure == measure]:
            having[name] = conditions
    for name, mine in having.items():
        for other, theirs in having.items():
            if not set(mine) & set(theirs):
                aspects = differing_aspects([mine[0], theirs[0]])
                this, that = (", ".join(tell(c, aspects)) for c in (mine[0], theirs[0]))
                raise UserError(
                    f"{measure} of {name} ({this}) and of {other} ({that}) do not compare; evaluate"
                    " both alike, or give --allow_mixed for a column each"
                )


def differing_aspects(conditions: Iterable[Conditions]) -> list[str]:
    """The aspects in which these are not all alike."""
    tables = [dict(each) for each in conditions]
    aspects = dict.fromkeys(aspect for table in tables for aspect in table)
    return [a for a in aspects if len({table.get(a) for table in tables}) > 1]


def header(column: Column, columns: Sequence[Column]) -> str:
    """The column's title; conditions are named where the measure has several columns."""
    same = [other.conditions for other in columns if other.measure == column.measure]
    told = tell(column.conditions, differing_aspects(same))
    return ", ".join([column.measure, *told])


def tell(conditions: Conditions, aspects: Sequence[str]) -> list[str]:
    """These aspects of the conditions in words, such as `eps 4/255`.

    The list of images has only its hash to be told by, so it is told where nothing else differs.
    """
    plain = [aspect for aspect in aspects if aspect != "image list"] or aspects
    return [
        text if aspect in ("images", "input") else f"{aspect} {text}"
        for aspect, text in conditions
        if aspect in plain
    ]


@dataclass(frozen=True)
class Table:
    """Named rows, columns, the value where a row has one in a column, and rows' warnings."""

    names: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, Column], Value]
    warnings: Mapping[str, Sequence[str]]

    def headers(self) -> list[str]:
        """The columns' titles, telling apart the columns of one measure."""
        return [header(column, self.columns) for column in self.columns]


def build_table(
    rows: Mapping[Row, list[Value]],
    names: Sequence[str],
    warnings: Mapping[Row, Sequence[str]],
    mixed: bool = False,
) -> Table:
    """Lay out the values.

    Args:
        rows: the values of each checkpoint.
        names: a name per row.
        warnings: what the evaluations warned of.
        mixed: allow columns in which some rows stand alone, because conditions differ.

    Raises:
        UserError: without `mixed`, two rows have a measure under no common conditions.
    """
    columns = choose_columns(rows, names, mixed)
    cells = {
        (name, Column(value.measure, value.conditions)): value
        for name, values in zip(names, rows.values(), strict=True)
        for value in values
    }
    told = {name: warnings.get(row, ()) for name, row in zip(names, rows, strict=True)}
    return Table(tuple(names), tuple(columns), cells, told)
