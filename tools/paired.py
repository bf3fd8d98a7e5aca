"""The effect of one row over another: its size, image by image, and whether it is chance."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from statistics import stdev

import numpy as np
from numpy.typing import NDArray

from tools.comparison import Column, Row, Table, Value
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


def effects(pairs: Sequence[Sequence[str]], rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Of each pair the second row minus the first, where they share a column, and its tests.

    Args:
        pairs: names of two rows each; none stands for the two that there are.
    """
    differing: list[Row] = []
    tests: list[tuple[Row, Column, float, str]] = []  # effect, column, p, counts of images
    for named in pairs:
        first, second = two_rows(named, rows)
        both = {c: (first.values[c], second.values[c]) for c in first.values if c in second.values}
        tested = {c: differences(*pair) for c, pair in both.items() if pair[0].outcomes}
        if first is second or not tested:
            raise UserError(
                f"{first.name} and {second.name} share no measure of two rows; evaluate both under"
                " the same conditions"
            )
        values = {column: minus(*pair) for column, pair in both.items()}
        row = Row(values, f"{second.name} minus {first.name}", is_effect=True)
        differing.append(row)
        for column, of_images in tested.items():
            interval = bootstrap_interval(of_images, len(first.values[column].members) or 1)
            values[column] = replace(values[column], interval=interval)
            eps = "".join(f", {text}" for text in column.describe(["eps"]))
            better, worse = (of_images > 0).sum(), (of_images < 0).sum()
            counts = f"{second.name} better on {better} images, worse on {worse}"
            text = f"{column.title}{eps}: {counts}; of {len(of_images)}"
            tests.append((row, column, sign_test_exact(of_images), text))
    notes = [
        f"{', '.join(row.name for row in differing)}: in points, in brackets the 95 % interval of"
        f" {DRAWS} bootstrap samples of the images, each with all its seeds; p of the exact paired"
        " test over images (of one seed McNemar's), after Holm's correction for"
        f" {len(tests)}. Both are about these trainings; ± is over pairs of seeds."
    ]
    all_corrected = holm([p for _, _, p, _ in tests])
    for (row, column, p, text), corrected in zip(tests, all_corrected, strict=True):
        row.values[column] = replace(row.values[column], p=corrected)
        notes.append(f"{text}, p = {p:.3g}, corrected {corrected:.3g}")
    return differing, notes


def two_rows(named: Sequence[str], rows: Sequence[Row]) -> Sequence[Row]:
    """The rows that a pair names, or the two that there are."""
    two = [row_meant(name, rows) for name in named] or rows
    if len(two) != 2:
        names = ", ".join(row.name for row in two)
        raise UserError(f"--paired takes two rows, not {len(two)}: {names}")
    return two


def minus(first: Value, second: Value) -> Value:
    """The second minus the first, with the spread over seeds that stand in the same place."""
    members = [minus(*pair) for pair in zip(first.members, second.members, strict=False)]
    is_paired = len(members) > 1 and len(first.members) == len(second.members)
    return Value(
        percent=second.percent - first.percent,
        spread=stdev(member.percent for member in members) if is_paired else None,
        warned=first.warned or second.warned,
        source=f"{second.source} minus {first.source}",
        members=tuple(members),
    )


def not_told_from_best(table: Table) -> tuple[set[tuple[str, Column]], list[str]]:
    """Row and column of every value that the exact test does not tell from its column's best.

    Of the rows that have outcomes image by image. Beside them, why a column has none.
    """
    bold: set[tuple[str, Column]] = set()
    notes = []
    for column, title in table.columns.items():
        rows = {r.name: r.values[column] for r in table.rows if column in r.values}
        rows = {name: value for name, value in rows.items() if value.outcomes}
        best = max(rows.values(), key=lambda value: value.percent, default=None)
        if best is None or len(rows) == 1:
            continue
        try:
            p = {name: sign_test_exact(differences(best, value)) for name, value in rows.items()}
            bold |= {(name, column) for name in rows if p[name] >= ALPHA}
        except UserError as error:
            notes.append(f"{title}: nothing in bold; {error}")
    return bold, notes


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for as many tests (Holm, S. 1979, Scandinavian Journal of Statistics 6)."""
    number, highest = len(p_values), 0.0
    corrected = [0.0] * number
    for rank, index in enumerate(sorted(range(number), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (number - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def row_meant(name: str, rows: Sequence[Row]) -> Row:
    """The row that is meant: by its name, or by its run folder or result file."""
    path = Path(name).resolve()
    for row in rows:
        members = [one for value in row.values.values() for one in value.members or (value,)]
        sources = {Path(one.source).resolve() for one in members}
        if row.name == name or path in sources | {source.parent for source in sources}:
            return row
    raise UserError(f"--paired {name}: no such row; there are {', '.join(r.name for r in rows)}")


def differences(first: Value, second: Value) -> Counts:
    """For every image: how many more seeds of the second are right than of the first."""
    one, other = len(first.members) or 1, len(second.members) or 1
    if one != other:
        raise UserError(
            f"{first.source} is of {one} seeds and {second.source} of {other}; give as many of both"
        )
    (images, rights), (others, other_rights) = right_seeds(first), right_seeds(second)
    if images != others:
        raise UserError(f"{first.source} and {second.source} have per-image files of other images")
    return other_rights - rights


def right_seeds(value: Value) -> tuple[list[str], Counts]:
    """The images, and how many seeds are right on each."""
    images: list[str] = []
    rights = []
    for one in value.members or (value,):
        path = Path(one.source)
        path = path.with_name(f"{path.stem}_images.csv")
        changed = path.stat().st_mtime_ns if path.exists() else 0
        names, columns = image_table(path, changed)
        if one.outcomes not in columns:
            raise UserError(f"{path} has no column {one.outcomes}; evaluate again")
        if names != (images or names):
            raise UserError(f"the per-image files of seeds of {value.source} differ in images")
        images = names
        rights.append(columns[one.outcomes])
    return images, np.sum(rights, axis=0)


@lru_cache(maxsize=64)
def image_table(path: Path, changed: int) -> tuple[list[str], dict[str, Counts]]:
    """The images of a file in order of their names, and by column which are right."""
    rows = sorted(read_csv(path, ("image",), "evaluate again"), key=itemgetter("image"))
    columns = rows[0].keys() - {"image"}
    rights = {c: np.array([row[c] == "1" for row in rows], dtype=np.int64) for c in columns}
    return [row["image"] for row in rows], rights
