"""The effect of one row over another: its size, image by image, and whether it is chance."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.comparison import Column, Effect, Value, Values
from tools.comparison_layout import Table
from utils.errors import UserError
from utils.storage.files import read_csv

DRAWS = 10_000
ALPHA = 0.05  # p from which on a value is not told from the best
Counts = NDArray[np.int64]


def sign_test_exact(differences: Counts) -> float:
    """Two-sided p-value: each image's difference might as well have the other sign.

    With one training each it is McNemar's exact test (1947, Psychometrika 12), with several
    Fisher's randomisation test over images. 1 where nothing differs.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    chances = np.ones(1)  # of each sum of the positive differences
    for size, n in zip(sizes, counts, strict=True):
        k = np.arange(1, n + 1)
        logs = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))]) - n * np.log(2)
        binomial = np.zeros(size * n + 1)
        binomial[::size] = np.exp(logs)
        chances = np.convolve(chances, binomial)
    positive = int(differences[differences > 0].sum())
    return min(1.0, 2 * float(min(chances[: positive + 1].sum(), chances[positive:].sum())))


def bootstrap_interval(differences: Counts, seeds: int) -> tuple[float, float]:
    """95 % percentile interval of the mean difference, in points.

    Images are drawn with the outcomes of all their seeds, which are alike (Efron 1979, Annals of
    Statistics 7). Drawing the few values that there are is the same as drawing images.
    """
    n = len(differences)
    values, counts = np.unique(differences, return_counts=True)
    sums = np.random.default_rng(0).multinomial(n, counts / n, size=DRAWS) @ values
    low, high = np.percentile(100 * sums / (n * seeds), [2.5, 97.5])
    return float(low), float(high)


def effect(names: Sequence[str], rows: Mapping[str, Values]) -> tuple[dict[str, Values], list[str]]:
    """The second row minus the first, where they share a column, and how it was tested."""
    names = [row_meant(name, rows) for name in names]
    first, second = (rows[name] for name in names)
    shared = [column for column in first if column in second]
    tested = [column for column in shared if first[column].outcomes]
    if names[0] == names[1] or not tested:
        raise UserError(
            f"{names[0]} and {names[1]} share no measure of two rows; evaluate both under the same"
            " conditions"
        )
    found = {column: differences(first[column], second[column]) for column in tested}
    p_values = [sign_test_exact(of_images) for of_images in found.values()]
    corrected = dict(zip(tested, holm(p_values), strict=True))
    row: dict[Column, Value] = {}
    for column in shared:
        one, other = first[column], second[column]
        about: dict[str, Any] = {
            "n": one.n,
            "seeds": one.seeds,
            "spread": paired_spread(one, other),
        }
        if column in found:
            interval = bootstrap_interval(found[column], one.seeds or 1)
            about |= {"interval": interval, "p": corrected[column]}
        warned = one.warned or other.warned
        source = f"{other.source} minus {one.source}"
        row[column] = Effect(other.percent - one.percent, warned=warned, source=source, **about)
    name = f"{names[1]} minus {names[0]}"
    notes = [
        f"{name}: in points, in brackets the 95 % interval of {DRAWS} bootstrap samples of the"
        " images, each with all its seeds; p of the exact paired test over images (of one seed"
        f" McNemar's), after Holm's correction for {len(tested)}. Both are about these trainings;"
        " ± is over pairs of seeds.",
        *(
            f"{described(column)}: {names[1]} better on {(d > 0).sum()} images, worse on"
            f" {(d < 0).sum()}; of {len(d)}, p = {p:.3g}, corrected {corrected[column]:.3g}"
            for (column, d), p in zip(found.items(), p_values, strict=True)
        ),
    ]
    return {name: row}, notes


def described(column: Column) -> str:
    eps = column.condition("eps")
    return column.title + (f", eps {eps}" if eps else "")


def paired_spread(first: Value, second: Value) -> float | None:
    """Standard deviation of the differences of seeds that stand in the same place."""
    pairs = zip(first.members, second.members, strict=False)
    each = [other.percent - one.percent for one, other in pairs]
    return stdev(each) if len(each) > 1 and len(first.members) == len(second.members) else None


def not_told_from_best(table: Table) -> tuple[set[tuple[str, Column]], list[str]]:
    """Row and column of every value that the exact test does not tell from its column's best.

    Of the rows that have outcomes image by image. Beside them, why a column has none.
    """
    found: set[tuple[str, Column]] = set()
    notes = []
    for column, title in table.columns.items():
        rows = {n: row[column] for n, row in table.rows.items() if column in row}
        rows = {name: value for name, value in rows.items() if value.outcomes}
        best = max(rows.values(), key=lambda value: value.percent, default=None)
        if best is None or len(rows) == 1:
            continue
        try:
            p = {name: sign_test_exact(differences(best, value)) for name, value in rows.items()}
            found |= {(name, column) for name in rows if p[name] >= ALPHA}
        except UserError as error:
            notes.append(f"{title}: nothing in bold; {error}")
    return found, notes


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
        members = (one for value in values.values() for one in value.members or (value,))
        sources = {Path(one.source).resolve() for one in members}
        if any(path in (source, source.parent) for source in sources):
            return row
    raise UserError(f"--paired {name}: no such row; there are {', '.join(rows)}")


def differences(first: Value, second: Value) -> Counts:
    """For every image: how many more seeds of the second are right than of the first."""
    if (first.seeds or 1) != (second.seeds or 1):
        raise UserError(
            f"{first.source} is of {first.seeds or 1} seeds and {second.source} of"
            f" {second.seeds or 1}; give as many of both"
        )
    (images, rights), (others, other_rights) = right_seeds(first), right_seeds(second)
    if images != others:
        raise UserError(f"{first.source} and {second.source} have per-image files of other images")
    return other_rights - rights


def right_seeds(value: Value) -> tuple[list[str], Counts]:
    """The images, and how many seeds are right on each."""
    found = []
    for one in value.members or (value,):
        path = Path(one.source)
        path = path.with_name(f"{path.stem}_images.csv")
        changed = path.stat().st_mtime_ns if path.exists() else 0
        images, columns = image_table(path, changed)
        if one.outcomes not in columns:
            raise UserError(f"{path} has no column {one.outcomes}; evaluate again")
        found.append((images, columns[one.outcomes]))
    if any(images != found[0][0] for images, _ in found):
        raise UserError(f"the per-image files of seeds of {value.source} differ in images")
    return found[0][0], np.sum([right for _, right in found], axis=0)


@lru_cache(maxsize=64)
def image_table(path: Path, changed: int) -> tuple[list[str], dict[str, Counts]]:
    """The images of a file in order of their names, and by column which are right."""
    rows = sorted(read_csv(path, ("image",), "evaluate again"), key=itemgetter("image"))
    columns = rows[0].keys() - {"image"}
    rights = {c: np.array([row[c] == "1" for row in rows], dtype=np.int64) for c in columns}
    return [row["image"] for row in rows], rights
