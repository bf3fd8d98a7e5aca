"""Result files of evaluations: accuracies in typed records, written and read here alone."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from utils.errors import UserError
from utils.storage.conditions import Conditions
from utils.storage.files import write_json
from utils.storage.run_folder import KINDS

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """Wilson's score interval for a binomial proportion, in [0, 1]; (0, 1) of no images.

    Wilson, E. B. (1927), JASA 22; it keeps its coverage near 0 and 1.
    """
    if n == 0:
        return 0.0, 1.0
    p, z = correct / n, Z_95
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the exact value is 0 or 1; rounding must not push it past the proportion.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == n else (centre + half) / scale
    return low, high


@dataclass(frozen=True)
class Estimate:
    """A value in percent, with its 95 % interval or its standard deviation over seeds."""

    percent: float
    interval: tuple[float, float] | None = None
    spread: float | None = None
    warned: bool = False  # by its evaluation, so figures draw it hollow

    @property
    def whiskers(self) -> tuple[float, float]:
        if self.spread is not None:
            return self.percent - self.spread, self.percent + self.spread
        return self.interval or (self.percent, self.percent)


def mean_over_seeds(percents: Sequence[float]) -> Estimate:
    """Mean and standard deviation of the same of several seeds; one alone has no deviation."""
    return Estimate(fmean(percents), spread=stdev(percents) if len(percents) > 1 else None)


def mean_estimate(mean: float, n: int) -> Estimate:
    """A mean in [0, 1] of accuracies that are all on the same n images."""
    # Of n, not of all outcomes: wide enough however strongly those of an image are correlated.
    low, high = wilson_interval(mean * n, n)
    return Estimate(100 * mean, (100 * low, 100 * high))


@dataclass(frozen=True)
class Accuracy:
    """How many of n images are right."""

    correct: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.n:
            raise ValueError(f"{self.correct} of {self.n} images is no accuracy")

    @property
    def fraction(self) -> float:
        return self.correct / self.n if self.n else 0.0

    @property
    def percent(self) -> float:
        return 100 * self.fraction

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (Wilson), in [0, 1]."""
        return wilson_interval(self.correct, self.n)

    @property
    def estimate(self) -> Estimate:
        """The same in percent."""
        low, high = self.interval
        return Estimate(self.percent, (100 * low, 100 * high))


@dataclass(frozen=True)
class TopAccuracies:
    """Top-1, and top-5 where it was looked at."""

    top1: Accuracy
    top5: Accuracy | None = None


@dataclass(frozen=True, kw_only=True)
class CleanAccuracies(TopAccuracies):
    """On clean images, with the mean cross-entropy in nats."""

    loss: float


@dataclass(frozen=True, kw_only=True)
class AttackAccuracies(TopAccuracies):
    """Under one attack."""

    name: str  # as `--attack` takes it; `autoattack-apgd-ce` for what a part of AutoAttack left
    label: str  # in tables
    steps: int
    step_size: float  # in [0, 1] under Linf; 0 where the attack sets its own
    loss: str | None  # what it ascends; None where the attack has its own
    restarts: int
    scale: float | None  # factor on the network's raw outputs under the loss

    @property
    def is_part(self) -> bool:
        """Whether this is what the first of an attack's several attacks have left."""
        return ", after " in self.label

    @property
    def title(self) -> str:
        """Its label without the step, which may follow the radius."""
        return re.sub(r", step [^)]*", "", self.label)


@dataclass(frozen=True)
class Result:
    """What every result file holds."""

    conditions: Conditions  # everything that can change the numbers
    provenance: Mapping[str, Any]  # command, settings, checkpoint, subset, versions, device, date
    warnings: tuple[str, ...]  # what casts doubt on the numbers
    notes: tuple[str, ...] = field(default=(), kw_only=True)  # what else to know about them


@dataclass(frozen=True)
class AttackResult(Result):
    """Clean accuracy and robustness."""

    clean: CleanAccuracies
    attacks: tuple[AttackAccuracies, ...]  # none after a cascade: each saw a part of the images
    worst_case: TopAccuracies  # robust against all of them
    cascade: tuple[str, ...] | None = None  # names of its attacks; None where each saw all images

    def is_doubtful(self, label: str) -> bool:
        """Whether a warning is about the attack of this label, or about all of them."""
        others = [attack.label for attack in self.attacks if attack.label != label]
        subjects = (warning.partition(":")[0] for warning in self.warnings)
        return any(label in s or not any(other in s for other in others) for s in subjects)


@dataclass(frozen=True)
class CorruptionAccuracies:
    """One corruption's group, and its accuracies by severity, 1 to 5."""

    group: str
    top1: tuple[Accuracy, ...]
    top5: tuple[Accuracy, ...]


@dataclass(frozen=True)
class CleanReference:
    """The clean accuracy in [0, 1] behind relative mCE, and where it was found; None: nowhere."""

    accuracy: float | None
    source: str | None


@dataclass(frozen=True)
class Summary:
    """Means over ImageNet-C's 15 corruptions; None where they are undefined."""

    mean_accuracy: float | None  # in [0, 1], the figure of arXiv:2002.08619
    mean_error: float | None  # the same of errors, unnormalised
    mCE: float | None  # in percent, as it is published
    relative_mCE: float | None
    groups: Mapping[str, float | None]  # mean accuracy in [0, 1]
    CE: Mapping[str, float]  # corruption errors in percent
    left_out: Mapping[str, str]  # {what is None: why}


@dataclass(frozen=True)
class ImageNetCResult(Result):
    """Accuracy per corruption and severity."""

    corruptions: Mapping[str, CorruptionAccuracies]
    clean: CleanReference
    summary: Summary


@dataclass(frozen=True)
class ShiftAccuracies:
    """On one shifted test set."""

    classes: int
    images: str  # SHA-256 of the list of images
    top1: Accuracy  # over all outputs of the network
    top5: Accuracy
    present_top1: Accuracy  # over the outputs of its classes alone
    present_top5: Accuracy


@dataclass(frozen=True)
class ShiftResult(Result):
    """Accuracy on each shifted test set."""

    sets: Mapping[str, ShiftAccuracies]


Kind = TypeVar("Kind", bound=Result)
JSON_TYPES: dict[Any, Any] = {tuple: list, Mapping: dict, float: (float, int)}
RECORDS = dict(zip(KINDS, (AttackResult, ImageNetCResult, ShiftResult), strict=True))


def write_result(path: Path, result: Result) -> None:
    """Write a result as JSON, whole or not at all."""
    write_json(path, {"kind": result.conditions.kind, **plain(result)})


def plain(value: Any) -> Any:
    """A record as JSON's values. A field that may be left out is, where it is None."""
    if isinstance(value, Accuracy):
        interval = list(value.interval)
        return {**vars(value), "accuracy": value.fraction, "interval95": interval}
    if is_dataclass(value):
        pairs = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: plain(v) for f, v in pairs if v is not None or f.default is MISSING}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def record(annotation: Any, value: Any) -> Any:
    """JSON's values as what an annotation says, `plain` the other way round; else a TypeError."""
    arguments = get_args(annotation)
    if annotation is Any or (value is None and type(None) in arguments):
        return value
    if type(None) in arguments:
        return record(arguments[0], value)
    kind = get_origin(annotation) or annotation
    if not isinstance(value, dict if is_dataclass(kind) else JSON_TYPES.get(kind, kind)):
        raise TypeError(f"{value!r:.60} is no {kind.__name__}")
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        needed = {k: hint for k, hint in hints.items() if k in value or not hasattr(kind, k)}
        return kind(**{key: record(hint, value[key]) for key, hint in needed.items()})
    if kind is tuple:
        return tuple(record(arguments[0], entry) for entry in value)
    if kind is Mapping:
        return {key: record(arguments[1], entry) for key, entry in value.items()}
    return value


def read_result(path: Path) -> Result:
    """A result file."""
    result = result_of(path)
    if result is None:
        raise UserError(f"{path} is no evaluation of attacks, ImageNet-C or shifted test sets")
    return result


def result_of(path: Path) -> Result | None:
    """As `read_result`, but None where it is another kind of JSON file."""
    try:
        data = json.loads(path.read_bytes())
        if not (isinstance(data, dict) and data.get("kind") in RECORDS and "provenance" in data):
            return None
        result: Result = record(RECORDS[data["kind"]], data)
        origin = result.provenance
        record(tuple[str, ...], [origin["checkpoint"]["path"], origin["subset"]["description"]])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is no whole evaluation ({reason}); evaluate again") from error
    return result


def find_results(paths: Sequence[Path]) -> dict[Path, Result]:
    """Every evaluation named, and every one in the run folders named; each once."""
    results: dict[Path, Result] = {}
    for path in paths:
        if not path.is_dir():
            results[path] = read_result(path)
            continue
        inside = {file: result_of(file) for file in sorted(path.glob("*.json"))}
        if not any(inside.values()):
            raise UserError(f"{path} holds no evaluation; make one with evaluate.py -e")
        results |= {file: result for file, result in inside.items() if result}
    return results


def only_result(run: Path, kind: type[Kind]) -> Kind:
    """The one evaluation of its kind in a run folder."""
    (result,) = (r for r in find_results([run]).values() if isinstance(r, kind))
    return result


def result_stem(folder: Path, conditions: Conditions, usual: Mapping[str, Any]) -> Path:
    """Path of an evaluation's files without extension.

    Where a result under other conditions has that name (of other images, say), a digest is added;
    the result of a checkpoint whose content has changed since is replaced.
    """
    stem = folder / conditions.file_name(usual)
    others = conditions_at(stem)
    if others is None or replace(others, checkpoint=conditions.checkpoint) == conditions:
        return stem
    return Path(f"{stem}_{conditions.digest}")


def conditions_at(stem: Path) -> Conditions | None:
    """The conditions of the result of this name; None where there is none that can be read."""
    try:
        return read_result(Path(f"{stem}.json")).conditions
    except UserError:
        return None
