"""The values of several evaluations, each under its conditions: one row a run, or its seeds.

Values of one measure share a column only where all their conditions agree, and a table holds
columns of one list of images: a check on a few images never stands beside full evaluations.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.storage import accuracy
from utils.storage.accuracy import Accuracy, Estimate, mean_estimate
from utils.storage.conditions import Conditions, length_text, worst_of
from utils.storage.results import AttackResult, ImageNetCResult, Result, ShiftResult
from utils.storage.run_folder import run_settings

Texts = tuple[tuple[str, str], ...]  # conditions as (aspect, text), such as ("eps", "4/255")
MEAN, MCE = "ImageNet-C mean", "mCE"
MEAN_OF_OTHERS = "Mean over 15 corruptions"  # of classes that are not ImageNet's
# Where a measure stands among the columns. Attacks: 1; shifted test sets: last.
POSITIONS = {"Clean": 0, "Worst case": 2, MEAN: 3, MEAN_OF_OTHERS: 3, MCE: 4}
KINDS = {"attack": "", "imagenet_c": "corruptions, "}
# What changes no number of a run.
IRRELEVANT = {"imagenet", "imagenet_c", "workers", "print_freq", "checkpoint_minutes", "compile"}


@dataclass(frozen=True)
class Column:
    """One measure under one set of conditions."""

    measure: str  # conditions apart, such as `PGD-10 (ce)`
    kind: str  # of the evaluation: `attack`, `imagenet_c`, or `shift` and the test set
    conditions: Texts  # what must agree for two values to compare

    def condition(self, aspect: str) -> str:
        """The text of one aspect; empty where it has none."""
        return dict(self.conditions).get(aspect, "")

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
    """One number, in percent; its spread is over seeds, where it is a mean over several."""

    n: int  # images
    source: Path | str  # the file, or who published it
    scale: float | None = None  # factor on the outputs under the attack's loss
    outcomes: str = ""  # the column of the per-image CSV beside the source
    seeds: int | None = None  # how many, in a row of several


Values = Mapping[Column, Value]


@dataclass
class Row:
    """A checkpoint, or the first of several seeds, its values and what they came with."""

    folder: Path
    sha256: str
    file: str
    values: dict[Column, Value] = field(default_factory=dict)
    remarks: dict[tuple[str, str], None] = field(default_factory=dict)
    seeds: int = 1


@dataclass(frozen=True)
class Table:
    """Named rows over columns, whose titles name what distinguishes their conditions."""

    title: str
    columns: Mapping[Column, str]
    rows: Mapping[str, Values]

    @property
    def values(self) -> Iterator[tuple[str, Column, Value]]:
        """Row by row."""
        for name, values in self.rows.items():
            yield from ((name, c, values[c]) for c in self.columns if c in values)


def collect(results: Mapping[Path, Result]) -> list[Row]:
    """A row for each checkpoint, in the order of the files."""
    rows: dict[tuple[Path, str], Row] = {}
    for path, result in results.items():
        key = folder, sha256 = path.resolve().parent, result.conditions.checkpoint
        file = Path(result.provenance["checkpoint"]["path"]).name
        row = rows.setdefault(key, Row(folder, sha256, file))
        row.remarks |= dict.fromkeys(("Warning", text) for text in result.warnings)
        row.remarks |= dict.fromkeys(("Note", text) for text in result.notes)
        for column, value in values_of(path, result):
            known = row.values.setdefault(column, value)
            if (known.percent, known.n) != (value.percent, value.n):
                raise UserError(
                    f"{known.source} and {path} give two values of {column.measure} for one"
                    f" checkpoint, {known.percent:.2f} and {value.percent:.2f} %; name the file"
                    " meant"
                )
    return list(rows.values())


def values_of(path: Path, result: Result) -> Iterator[tuple[Column, Value]]:
    """The values of one file, all of top-1, in the table's order."""

    def value(top1: Accuracy, **about: Any) -> Value:
        return Value(**vars(top1.estimate) | about, n=top1.n, source=path)

    conditions = result.conditions
    way = f" {conditions.interpolation}" * (conditions.interpolation != "bilinear")
    resize = f"resize {conditions.resize}{way}, " if conditions.resize else ""
    inputs = ("input", f"{resize}crop {conditions.crop}")
    subset = ("images", result.provenance["subset"]["description"])
    images = (subset, ("image list", conditions.images[:12]), inputs)
    protocol = ("protocol", conditions.protocol)
    if isinstance(result, AttackResult):
        yield Column("Clean", "attack", images), value(result.clean.top1, outcomes="clean_correct")
        search = (protocol, *search_conditions(conditions))
        for attack in result.attacks:
            if attack.is_part:
                continue  # what some of its attacks have left is no attack of its own
            measure, texts = attack.label, search
            if attack.steps:
                measure = re.sub(r", step [^)]*", "", measure)
                step = length_text(attack.step_size, conditions.norm)
                texts += (("step", step), starts_of(conditions))
            column = Column(measure, "attack", texts + images)
            about = {"scale": attack.scale, "warned": result.is_doubtful(attack.label)}
            yield column, value(attack.top1, outcomes=f"{attack.name}_robust", **about)
        column = Column("Worst case", "attack", search + attacks_behind(conditions) + images)
        warned = bool(result.warnings)
        yield column, value(result.worst_case.top1, outcomes="worst_case_robust", warned=warned)
    elif isinstance(result, ImageNetCResult):
        mean, mce = result.summary.mean_accuracy, result.summary.mCE
        n, warned = next(iter(result.corruptions.values())).top1[0].n, bool(result.warnings)
        if mean is not None:
            column = Column(
                MEAN_OF_OTHERS if mce is None else MEAN, "imagenet_c", (protocol, *images)
            )
            estimate = replace(mean_estimate(mean, n), warned=warned)
            yield column, Value(**vars(estimate), n=n, source=path)
        if mce is not None:
            column = Column(MCE, "imagenet_c", (protocol, *images))
            yield column, Value(mce, warned=warned, n=n, source=path)
    elif isinstance(result, ShiftResult):
        for name, test_set in result.sets.items():  # each is a kind of its own
            count = ("images", f"{test_set.top1.n} images")
            texts = (count, ("image list", test_set.images[:12]), inputs)
            of_classes = f"{name}, of its {test_set.classes} classes"
            for measure, top1 in ((name, test_set.top1), (of_classes, test_set.present_top1)):
                yield Column(measure, f"shift {name}", texts), value(top1)


def search_conditions(conditions: Conditions) -> Texts:
    """Under which rules attacks looked for adversarial images."""
    surrogate = (("surrogate", conditions.surrogate[:12]),) if conditions.surrogate else ()
    return (
        ("eps", length_text(conditions.eps, conditions.norm)),
        ("search in", conditions.precision),
        ("seed", str(conditions.seed)),
        *surrogate,
    )


def attacks_behind(conditions: Conditions) -> Texts:
    """The attacks behind a worst case, and their steps."""
    pairs = [text.partition("@")[::2] for text in conditions.attacks]
    unit = 255 if conditions.norm == "Linf" else 1
    steps = [length_text(float(step) / unit, conditions.norm) for _, step in pairs if step]
    over = ("over", " + ".join(name for name, _ in pairs))
    if not steps:
        return (over,)
    return ("step", " and ".join(dict.fromkeys(steps))), starts_of(conditions), over


def starts_of(conditions: Conditions) -> tuple[str, str]:
    """What random starts are drawn by."""
    return "random start by", conditions.starts or "number in the list"


def seed_groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows that differ in the training's seed alone, in the place of the first; others alone."""
    groups: dict[str, list[tuple[int, Row]]] = {}
    for row in rows:
        setting, seed = setting_and_seed(row)
        groups.setdefault(setting, []).append((seed, row))
    for group in groups.values():
        together = len({seed for seed, _ in group}) == len(group)
        yield from [[row for _, row in group]] if together else ([row] for _, row in group)


def merge_seeds(rows: Sequence[Row]) -> list[Row]:
    """Rows that differ in the training's seed alone become one."""
    merged: list[Row] = []
    for members in seed_groups(rows):
        if len(members) > 1:
            values: dict[Column, list[Value]] = {}
            for column, value in (pair for row in members for pair in row.values.items()):
                values.setdefault(column, []).append(value)
            means = {column: over_seeds(seeds) for column, seeds in values.items()}
            remarks = dict.fromkeys(remark for row in members for remark in row.remarks)
            members = [replace(members[0], values=means, remarks=remarks, seeds=len(members))]
        merged += members
    return merged


def setting_and_seed(row: Row) -> tuple[str, int]:
    """What the run has in common with its like of other seeds, and its seed."""
    name, seed_in_name = re.findall(r"^(.*?)(?:_seed(\d+))?$", row.folder.name)[0]
    config = run_settings(row.folder)
    training = [
        {k: v for k, v in config.get(section, {}).items() if k not in IRRELEVANT}
        for section in ("TRAIN", "ADV", "DATA", "HE")
    ]
    seed = config.get("RUN", {}).get("seed", int(seed_in_name or 0))
    return json.dumps([name, row.file, training], sort_keys=True), seed


def over_seeds(values: Sequence[Value]) -> Value:
    """Mean and standard deviation over seeds; of a single one its value, without a spread."""
    if len(values) == 1:
        return replace(values[0], seeds=1)
    mean = accuracy.over_seeds([value.percent for value in values])
    if values[0].interval:
        mean = replace(mean, interval=mean_estimate(mean.percent / 100, values[0].n).interval)
    warned = any(value.warned for value in values)
    return replace(values[0], **vars(mean) | {"warned": warned}, seeds=len(values))


def build_tables(rows: Mapping[str, Values], published: Mapping[str, Values]) -> list[Table]:
    """Lay out the values: first the largest evaluations, then those of other images."""
    sizes: dict[Column, int] = {}
    for column, value in (pair for values in rows.values() for pair in values.items()):
        sizes[column] = max(value.n, sizes.get(column, 0))
    measures = list(dict.fromkeys(c.measure for c in sorted(sizes, key=lambda c: c.place)))
    largest: dict[str, str] = {}  # list of images by kind of evaluation
    groups: dict[tuple[str, str], list[Column]] = {}
    for column in sorted(sizes, key=lambda c: -sizes[c]):
        images = column.condition("image list")
        is_largest = largest.setdefault(column.kind, images) == images
        key = ("", "") if is_largest else (column.kind, images)
        groups.setdefault(key, []).append(column)
    tables = []
    for (kind, _), columns in groups.items():
        title = KINDS.get(kind, f"{kind} ") + columns[0].condition("images") if kind else ""
        ordered = [column for column in sizes if column in columns]
        ordered.sort(key=lambda c: (measures.index(c.measure), c.radius))
        headers = {column: header(column, ordered) for column in ordered}
        everything = {**rows, **published}
        inside = {name: v for name, v in everything.items() if v.keys() & headers.keys()}
        tables.append(Table(title, headers, inside))
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
