"""The numbers of evaluations, each with the conditions under which it was taken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.storage.accuracy import Accuracy, Estimate, mean_estimate
from utils.storage.conditions import Conditions as Measured
from utils.storage.conditions import length_text
from utils.storage.results import AttackResult, ImageNetCResult, Result, ShiftResult

Conditions = tuple[tuple[str, str], ...]  # (aspect, text), such as ("eps", "4/255")
MEAN, MCE = "ImageNet-C mean", "mCE"
MEAN_OF_OTHERS = "Mean over 15 corruptions"  # of classes that are not ImageNet's


@dataclass(frozen=True)
class Row:
    """One checkpoint: the folder of its evaluations, the hash of its file, the file's name."""

    folder: Path
    sha256: str
    checkpoint: str = field(compare=False)


@dataclass(frozen=True)
class Column:
    """One measure under one set of conditions.

    Attributes:
        measure: its name, conditions apart, such as `PGD-10 (ce)`.
        kind: of the evaluation, `attack`, `imagenet_c`, or `shift` and the test set.
        conditions: what must agree for two values to compare.
    """

    measure: str
    kind: str
    conditions: Conditions

    def condition(self, aspect: str) -> str:
        """The text of one aspect; empty where it has none."""
        return dict(self.conditions).get(aspect, "")

    @property
    def images(self) -> tuple[str, str]:
        """What a table holds one of: a kind of evaluation on one list of images."""
        return self.kind, self.condition("image list")


@dataclass(frozen=True, kw_only=True)
class Value(Estimate):
    """One number, in percent; its spread is over seeds, where it is a mean over several.

    Attributes:
        n: images behind it.
        source: the file, or who published it.
        scale: factor on the outputs under the attack's loss; it belongs to the network.
        outcomes: the column of the per-image CSV beside the source.
        seeds: how many, in a row of several.
    """

    column: Column
    n: int
    source: Path | str
    scale: float | None = None
    outcomes: str = ""
    seeds: int | None = None


def row_of(path: Path, result: Result) -> Row:
    name = Path(result.provenance["checkpoint"]["path"]).name
    return Row(path.resolve().parent, result.conditions.checkpoint, name)


def collect(results: Mapping[Path, Result]) -> dict[Row, list[Value]]:
    """The values of each checkpoint, in the order of the files.

    Raises:
        UserError: a file without a needed entry; two different values of the same thing.
    """
    rows: dict[Row, list[Value]] = {}
    for path, result in results.items():
        try:
            row, values = row_of(path, result), list(values_of(path, result))
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path} lacks what an evaluation holds ({error}); evaluate again"
            ) from error
        for value in values:
            add_value(rows.setdefault(row, []), value)
    return rows


def add_value(values: list[Value], new: Value) -> None:
    """Keep each value once. Two files may hold the same, but must not contradict each other."""
    for old in values:
        if old.column == new.column:
            if (old.percent, old.n) != (new.percent, new.n):
                raise UserError(
                    f"{old.source} and {new.source} give two values of {new.column.measure} for one"
                    f" checkpoint, {old.percent:.2f} and {new.percent:.2f} %; name the file meant"
                )
            return
    values.append(new)


def values_of(path: Path, result: Result) -> Iterator[Value]:
    """The values of one file, in the table's order."""
    if isinstance(result, AttackResult):
        yield from attack_values(path, result)
    elif isinstance(result, ImageNetCResult):
        yield from imagenet_c_values(path, result)
    elif isinstance(result, ShiftResult):
        yield from shift_values(path, result)


def accuracy_value(top1: Accuracy, column: Column, source: Path, **more: Any) -> Value:
    """An accuracy with what else a value holds."""
    return Value(**vars(top1.estimate), column=column, n=top1.n, source=source, **more)


def attack_values(path: Path, result: AttackResult) -> Iterator[Value]:
    """Clean accuracy, robust accuracy under each attack, and the worst case; all top-1."""
    measured = result.conditions
    images, search = image_conditions(result), search_conditions(measured)
    value = partial(accuracy_value, source=path)
    clean, worst_case = result.clean.top1, result.worst_case.top1
    yield value(clean, Column("Clean", "attack", images), outcomes="clean_correct")
    for attack in result.attacks:
        if attack.is_part:
            continue  # what some of its attacks have left is no attack of its own
        step = (("step", length_text(attack.step_size, measured.norm)),) if attack.steps else ()
        measure = re.sub(r", step [^)]*", "", attack.label) if step else attack.label
        column = Column(measure, "attack", (*search, *step, *images))
        yield value(attack.top1, column, outcomes=f"{attack.name}_robust", scale=attack.scale)
    over = (*search, *attack_list_conditions(measured), *images)
    yield value(worst_case, Column("Worst case", "attack", over), outcomes="worst_case_robust")


def imagenet_c_values(path: Path, result: ImageNetCResult) -> Iterator[Value]:
    """Mean accuracy over the 15 corruptions, and mCE where the classes are ImageNet's."""
    conditions = (("protocol", result.conditions.protocol), *image_conditions(result))
    mean, mce = result.summary.mean_accuracy, result.summary.mCE
    n = next(iter(result.corruptions.values())).top1[0].n
    column = partial(Column, kind="imagenet_c", conditions=conditions)
    if mean is not None:
        measure = MEAN_OF_OTHERS if mce is None else MEAN
        yield Value(**vars(mean_estimate(mean, n)), column=column(measure), n=n, source=path)
    if mce is not None:
        yield Value(mce, column=column(MCE), n=n, source=path)


def shift_values(path: Path, result: ShiftResult) -> Iterator[Value]:
    """Top-1 on each shifted test set, over all outputs and over its classes; each set is a kind."""
    network_input = image_conditions(result)[-1]
    for name, found in result.sets.items():
        images = (("images", f"{found.top1.n} images"), ("image list", found.images[:12]))
        column = partial(Column, kind=f"shift {name}", conditions=(*images, network_input))
        yield accuracy_value(found.top1, column(name), path)
        of_classes = column(f"{name}, of its {found.classes} classes")
        yield accuracy_value(found.present_top1, of_classes, path)


def image_conditions(result: Result) -> Conditions:
    """Which images, and how they became the network's input."""
    measured = result.conditions
    resize = f"resize {measured.resize}, " if measured.resize else ""
    return (
        ("images", result.provenance["subset"]["description"]),
        ("image list", measured.images[:12]),
        ("input", f"{resize}crop {measured.crop}"),
    )


def search_conditions(measured: Measured) -> Conditions:
    """Under which rules attacks looked for adversarial images."""
    transferred = (("attacked network", measured.surrogate[:12]),) if measured.surrogate else ()
    return (
        ("protocol", measured.protocol),
        ("eps", length_text(measured.eps, measured.norm)),
        ("search in", measured.precision),
        ("seed", str(measured.seed)),
        *transferred,
    )


def attack_list_conditions(measured: Measured) -> Conditions:
    """The attacks behind a worst case, and their steps."""
    pairs = [text.partition("@")[::2] for text in measured.attacks]
    names = [name for name, _ in pairs]
    unit = 255 if measured.norm == "Linf" else 1
    steps = dict.fromkeys(
        length_text(float(step) / unit, measured.norm) for _, step in pairs if step
    )
    over = ("over", " + ".join(names))
    return (("step", " and ".join(steps)), over) if steps else (over,)
