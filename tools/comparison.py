"""The values of several evaluations, each under its conditions: one row a run, or its seeds.

Values of one measure share a column only where all their conditions agree. A table holds columns of
one list of images: a check on a few images never stands beside full evaluations.
"""

import json
import re
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from lib.imagenet_c.corruptions import STANDARD
from utils.errors import UserError
from utils.storage.conditions import Conditions, length_text, unit_of, worst_of
from utils.storage.results import (
    AttackResult,
    Estimate,
    ImageNetCResult,
    Result,
    ShiftResult,
    mean_estimate,
    mean_over_seeds,
)
from utils.storage.run_folder import run_settings

MEAN, MCE = "ImageNet-C mean", "mCE"
MEAN_OF_OTHERS = "Mean over 15 corruptions"  # of classes that are not ImageNet's
# Where a measure stands among the columns. Attacks: 1; shifted test sets: last.
POSITIONS = {"Clean": 0, "Worst case": 2, MEAN: 3, MEAN_OF_OTHERS: 3, MCE: 4}
CORRUPTIONS = "corruptions"  # the kind of the columns of single ones
KINDS = {  # what a table of its own begins with
    "attack": "",
    "imagenet_c": "corruptions, ",
    CORRUPTIONS: "each corruption, mean over the severities, ",
}
# What changes no number of a run.
IRRELEVANT = {"imagenet", "imagenet_c", "workers", "print_freq", "checkpoint_minutes", "compile"}
Item = TypeVar("Item")


@dataclass(frozen=True)
class Column:
    """One measure under one set of conditions."""

    measure: str  # conditions apart, such as `PGD-10 (ce)`
    kind: str  # of the evaluation: `attack`, `imagenet_c`, `corruptions`, `shift` and the test set
    n: int  # images
    conditions: tuple[tuple[str, str], ...]  # such as ("eps", "4/255"); "" where there is none

    def condition(self, aspect: str) -> str:
        """The text of one aspect; empty where it has none."""
        return dict(self.conditions).get(aspect, "")

    def describe(self, aspects: Container[str]) -> list[str]:
        """These aspects of its conditions in words, such as `eps 4/255`."""
        return [
            text if aspect in ("images", "input") else f"{aspect} {text}"
            for aspect, text in self.conditions
            if aspect in aspects and text
        ]

    @property
    def place(self) -> int:
        """Where its measure stands among a table's columns."""
        return POSITIONS.get(self.measure, 1 if self.kind == "attack" else 5)

    @property
    def radius(self) -> float:
        """The number of its eps, `4/255` or `0.5 (L2)`; 0 where it has none."""
        return float(re.split("[/ ]", self.condition("eps") or "0")[0])

    @property
    def title(self) -> str:
        """The measure; of a worst case what it is over."""
        over = self.condition("over")
        return worst_of(over.split(" + ")).replace("w", "W", 1) if over else self.measure


@dataclass(frozen=True, kw_only=True)
class Value(Estimate):
    """One number, in percent, of an effect in points; of several seeds their mean and spread."""

    source: Path | str  # the file, or who published it
    outcomes: str = ""  # the column of the per-image CSV beside the source
    members: tuple["Value", ...] = ()  # in a row of several seeds those that have it, by seed
    p: float | None = None  # of an effect


@dataclass
class Row:
    """A checkpoint, or several seeds as one; a published network; or the effect of a row."""

    values: dict[Column, Value]
    name: str = ""
    folder: Path = Path()  # of the first seed, as all below
    file: str = ""
    sha256: str = ""
    seeds: int = 1
    remarks: dict[tuple[str, str], None] = field(default_factory=dict)
    is_effect: bool = False


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


def collect(results: Mapping[Path, Result]) -> list[Row]:
    """A row for each checkpoint, in the order of the files."""
    rows: dict[tuple[Path, str], Row] = {}
    for path, result in results.items():
        key = folder, sha256 = path.resolve().parent, result.conditions.checkpoint
        file = Path(result.provenance["checkpoint"]["path"]).name
        row = rows.setdefault(key, Row({}, folder=folder, file=file, sha256=sha256))
        row.remarks |= dict.fromkeys(("Warning", text) for text in result.warnings)
        row.remarks |= dict.fromkeys(("Note", text) for text in result.notes)
        for column, value in values_of(path, result):
            known = row.values.setdefault(column, value)
            if known.percent != value.percent:
                raise UserError(
                    f"{known.source} and {path} give two values of {column.measure} for one"
                    f" checkpoint, {known.percent:.2f} and {value.percent:.2f} %; name the file"
                    " meant"
                )
    return list(rows.values())


def values_of(path: Path, result: Result) -> Iterator[tuple[Column, Value]]:
    """The values of one file, all of top-1, in the table's order."""
    if isinstance(result, AttackResult):
        yield from values_of_attacks(path, result)
    elif isinstance(result, ImageNetCResult):
        yield from values_of_corruptions(path, result)
    elif isinstance(result, ShiftResult):
        yield from values_of_sets(path, result)


def value_of(path: Path, estimate: Estimate, **about: Any) -> Value:
    """An estimate as a value of one file."""
    return Value(**vars(estimate) | {"source": path} | about)


def inputs_of(conditions: Conditions) -> tuple[str, str]:
    """How images were brought to the network's size."""
    way = f" {conditions.interpolation}" * (conditions.interpolation != "bilinear")
    resize = f"resize {conditions.resize}{way}, " if conditions.resize else ""
    return "input", f"{resize}crop {conditions.crop}"


def images_of(result: Result) -> tuple[tuple[str, str], ...]:
    """Which images a file is about."""
    images, conditions = result.provenance["subset"]["description"], result.conditions
    return ("images", images), ("image list", conditions.images[:12]), inputs_of(conditions)


def values_of_attacks(path: Path, result: AttackResult) -> Iterator[tuple[Column, Value]]:
    """Clean, under each attack, worst case."""
    conditions, images, top1 = result.conditions, images_of(result), result.clean.top1
    clean = Column("Clean", "attack", top1.n, images)
    yield clean, value_of(path, top1.estimate, outcomes="clean_correct")
    search = (
        ("protocol", conditions.protocol),
        ("eps", length_text(conditions.eps, conditions.norm)),
        ("search in", conditions.precision),
        ("seed", str(conditions.seed)),
        ("surrogate", conditions.surrogate[:12]),
    )
    starts = ("random start by", conditions.starts or "number in the list")
    for attack in result.attacks:
        if attack.is_part:
            continue  # what some of its attacks have left is no attack of its own
        steps = (("step", length_text(attack.step_size, conditions.norm)), starts)
        texts = (*search, *(steps if attack.steps else ()), *images)
        column = Column(attack.title, "attack", attack.top1.n, texts)
        outcomes, warned = f"{attack.name}_robust", result.is_doubtful(attack.label)
        yield column, value_of(path, attack.top1.estimate, outcomes=outcomes, warned=warned)
    pairs = [text.partition("@")[::2] for text in conditions.attacks]
    sizes = dict.fromkeys(size + unit_of(conditions.norm) for _, size in pairs if size)
    steps = (("step", " and ".join(sizes)), starts)
    over = ("over", " + ".join(name for name, _ in pairs))
    texts = (*search, *(steps if sizes else ()), over, *images)
    estimate, warned = result.worst_case.top1.estimate, bool(result.warnings)
    worst = value_of(path, estimate, outcomes="worst_case_robust", warned=warned)
    yield Column("Worst case", "attack", top1.n, texts), worst


def values_of_corruptions(path: Path, result: ImageNetCResult) -> Iterator[tuple[Column, Value]]:
    """Mean over the 15, mCE, mean of each corruption."""
    mean, mce, warned = result.summary.mean_accuracy, result.summary.mCE, bool(result.warnings)
    n = next(iter(result.corruptions.values())).top1[0].n
    texts = (("protocol", result.conditions.protocol), *images_of(result))
    if mean is not None:
        column = Column(MEAN_OF_OTHERS if mce is None else MEAN, "imagenet_c", n, texts)
        yield column, value_of(path, mean_estimate(mean, n), warned=warned)
    if mce is not None:
        yield Column(MCE, "imagenet_c", n, texts), value_of(path, Estimate(mce), warned=warned)
    for name in sorted(result.corruptions, key=[*STANDARD, *result.corruptions].index):
        column = Column(corruption_title(name), CORRUPTIONS, n, texts)
        percent = fmean(accuracy.percent for accuracy in result.corruptions[name].top1)
        yield column, value_of(path, Estimate(percent), warned=warned)


def values_of_sets(path: Path, result: ShiftResult) -> Iterator[tuple[Column, Value]]:
    """Of each shifted test set, which is a kind of its own: of all outputs, of its classes."""
    for name, test_set in result.sets.items():
        kind, n = f"shift {name}", test_set.top1.n
        listed = ("image list", test_set.images[:12])
        texts = (("images", f"{n} images"), listed, inputs_of(result.conditions))
        yield Column(name, kind, n, texts), value_of(path, test_set.top1.estimate)
        of_classes = Column(f"{name}, of its {test_set.classes} classes", kind, n, texts)
        yield of_classes, value_of(path, test_set.present_top1.estimate)


def corruption_title(name: str) -> str:
    """As papers head its column."""
    word = re.split("[_-]", name)[0]
    short = {"gaussian": "Gauss.", "brightness": "Bright", "pixelate": "Pixel", "jpeg": "JPEG"}
    return short.get(word, word.capitalize()) if name in STANDARD else name


def seed_groups(runs: Iterable[tuple[Path, Hashable, Item]]) -> list[list[Item]]:
    """Items of runs that differ in the training's seed alone, by seed; others alone.

    Args:
        runs: folder, what else must be alike, and the item itself.
    """
    groups: dict[tuple[str, Hashable], list[tuple[int, Item]]] = {}
    for folder, like, item in runs:
        setting, seed = setting_and_seed(folder)
        groups.setdefault((setting, like), []).append((seed, item))
    found: list[list[Item]] = []
    for group in groups.values():
        if len({seed for seed, _ in group}) == len(group):
            found.append([item for _, item in sorted(group, key=itemgetter(0))])
        else:  # a seed twice: no sample of seeds
            found += [[item] for _, item in group]
    return found


def setting_and_seed(folder: Path) -> tuple[str, int]:
    """What the run has in common with its like of other seeds, and its seed."""
    name, seed_in_name = re.findall(r"^(.*?)(?:_seed(\d+))?$", folder.name)[0]
    config = run_settings(folder)
    training = [
        {k: v for k, v in config.get(section, {}).items() if k not in IRRELEVANT}
        for section in ("TRAIN", "ADV", "DATA", "HE")
    ]
    seed = config.get("RUN", {}).get("seed", int(seed_in_name or 0))
    return json.dumps([name, training], sort_keys=True), seed


def merge_seeds(rows: Sequence[Row]) -> list[Row]:
    """Rows that differ in the training's seed alone become one."""
    merged = []
    for members in seed_groups((row.folder, row.file, row) for row in rows):
        first, *others = members
        if others:
            columns = dict.fromkeys(column for row in members for column in row.values)
            means = {
                c: over_seeds([r.values[c] for r in members if c in r.values], c.n) for c in columns
            }
            remarks = dict.fromkeys(remark for row in members for remark in row.remarks)
            first = replace(first, values=means, remarks=remarks, seeds=len(members))
        merged.append(first)
    return merged


def over_seeds(values: Sequence[Value], n: int) -> Value:
    """Mean and standard deviation over seeds; of a single one its value, without a spread."""
    mean = mean_over_seeds([value.percent for value in values])
    if values[0].interval:
        mean = replace(mean, interval=mean_estimate(mean.percent / 100, n).interval)
    warned = any(value.warned for value in values)
    return replace(values[0], **vars(mean) | {"warned": warned, "members": tuple(values)})


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
