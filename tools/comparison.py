"""The values of several evaluations, each under its conditions: one row a run, or its seeds.

Values of one measure share a column only where all their conditions agree, and a table holds
columns of one list of images: a check on a few images never stands beside full evaluations.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lib.imagenet_c.corruptions import STANDARD
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
CORRUPTIONS = "corruptions"  # the kind of the columns of single ones
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
    members: tuple["Value", ...] = ()  # the values of several seeds, in their order


@dataclass(frozen=True, kw_only=True)
class Effect(Value):
    """A difference in points, with the interval and the test of paired images where there are."""

    p: float | None = None


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
        for name in sorted(result.corruptions, key=[*STANDARD, *result.corruptions].index):
            column = Column(corruption_title(name), CORRUPTIONS, (protocol, *images))
            percent = fmean(accuracy.percent for accuracy in result.corruptions[name].top1)
            yield column, Value(percent, warned=warned, n=n, source=path)
    elif isinstance(result, ShiftResult):
        for name, test_set in result.sets.items():  # each is a kind of its own
            count = ("images", f"{test_set.top1.n} images")
            texts = (count, ("image list", test_set.images[:12]), inputs)
            of_classes = f"{name}, of its {test_set.classes} classes"
            for measure, top1 in ((name, test_set.top1), (of_classes, test_set.present_top1)):
                yield Column(measure, f"shift {name}", texts), value(top1)


def corruption_title(name: str) -> str:
    """As papers head its column."""
    word = re.split("[_-]", name)[0]
    short = {"gaussian": "Gauss.", "brightness": "Bright", "pixelate": "Pixel", "jpeg": "JPEG"}
    return short.get(word, word.capitalize()) if name in STANDARD else name


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
            members.sort(key=lambda row: setting_and_seed(row)[1])
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
    about = vars(mean) | {"warned": warned, "members": tuple(values)}
    return replace(values[0], **about, seeds=len(values))
