"""McNemar's exact test: do two networks differ on the same images by more than chance?"""

from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path

from tools.comparison import Value, Values
from utils.errors import UserError
from utils.storage.files import read_csv


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value: the images on which two networks differ, as tosses of a fair coin.

    McNemar, Q. (1947), Psychometrika 12; the exact binomial form. 1 where they never differ.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    p: float = 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n  # whole numbers, rounded once
    return min(1.0, p)


def paired_lines(names: Sequence[str], rows: Mapping[str, Values]) -> list[str]:
    """For every measure that two rows share: on how many images they differ, and p."""
    first, second = (rows[row_meant(name, rows)] for name in names)
    shared = [column for column in first if column in second and first[column].outcomes]
    if not shared:
        raise UserError(
            f"{names[0]} and {names[1]} share no measure; evaluate both under the same conditions"
        )
    found, p_values = [], []
    for column in shared:
        one, other = outcomes(first[column]), outcomes(second[column])
        if one.keys() != other.keys():
            raise UserError(f"the per-image files of {names[0]} and {names[1]} list other images")
        a = sum(one[image] and not other[image] for image in one)
        b = sum(other[image] and not one[image] for image in one)
        eps = column.condition("eps")
        title = column.title + (f", eps {eps}" if eps else "")
        text = f"{title}: right on {a} images that the other gets wrong, against {b}; of {len(one)}"
        found.append(text)
        p_values.append(mcnemar_exact(a, b))
    number, corrected = len(found), holm(p_values)
    head = f"McNemar's exact test, {names[0]} against {names[1]}"
    if number == 1:
        return [f"{head}:", f"{found[0]}, p = {p_values[0]:.3g}"]
    results = zip(found, p_values, corrected, strict=True)
    return [
        f"{head}: {number} tests were made, so some p are small by chance; Holm's correction for"
        " all of them stands behind:",
        *(f"{text}, p = {p:.3g}, corrected {c:.3g}" for text, p, c in results),
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for as many tests (Holm, S. 1979, Scandinavian Journal of Statistics 6)."""
    number, highest = len(p_values), 0.0
    corrected = [0.0] * number
    for rank, index in enumerate(sorted(range(number), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (number - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def row_meant(name: str, rows: Mapping[str, Values]) -> str:
    """The row that is meant: by its name, or by its run folder or result file."""
    if name in rows:
        return name
    path = Path(name).resolve()
    for row, values in rows.items():
        sources = {Path(value.source).resolve() for value in values.values()}
        if any(path in (source, source.parent) for source in sources):
            return row
    raise UserError(f"--paired {name}: no such row; there are {', '.join(rows)}")


def outcomes(value: Value) -> dict[str, bool]:
    """{image: right} of one measure."""
    if (value.seeds or 1) > 1:
        raise UserError(f"--paired takes single runs, and {value.source} is one of several seeds")
    path = Path(value.source)
    path = path.with_name(f"{path.stem}_images.csv")
    rows = read_csv(path, ("image", value.outcomes), "evaluate again")
    return {row["image"]: row[value.outcomes] == "1" for row in rows}
