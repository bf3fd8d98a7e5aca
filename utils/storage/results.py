"""Evaluation files as values, each with the conditions under which it was taken."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError

KINDS = ("attack", "imagenet_c")
Conditions = tuple[tuple[str, str], ...]  # (aspect, text), such as ("eps", "4/255")


@dataclass(frozen=True)
class Row:
    """One checkpoint: the folder of its evaluations, the hash of its file, the file's name."""

    folder: Path
    sha256: str
    checkpoint: str = field(compare=False)


@dataclass(frozen=True)
class Value:
    """One number of the table, in percent.

    Attributes:
        measure: the column's name, conditions apart, such as `PGD-10 (ce)`.
        conditions: what must agree for two values to compare.
        percent: the value.
        interval: its 95 % interval in percent, or None where none can be had.
        n: images behind it.
        scale: factor on the outputs under the attack's loss; it belongs to the network.
        source: the file.
    """

    measure: str
    conditions: Conditions
    percent: float
    interval: tuple[float, float] | None
    n: int
    scale: float | None
    source: Path


def find_evaluations(paths: Sequence[Path]) -> list[tuple[Path, dict]]:
    """Every evaluation named, and every one in the run folders named; each once.

    Raises:
        UserError: a path that is not there, a folder without evaluations, another kind of file.
    """
    found: dict[Path, dict] = {}
    for path in paths:
        if path.is_dir():
            inside = {file: read_json(file) for file in sorted(path.glob("*.json"))}
            inside = {file: data for file, data in inside.items() if is_evaluation(data)}
            if not inside:
                raise UserError(f"{path} holds no evaluation; make one with evaluate.py -e")
            found.update(inside)
        else:
            found[path] = read_json(path)
            if not is_evaluation(found[path]):
                raise UserError(f"{path} is no evaluation of attacks or of ImageNet-C")
    return list(found.items())


def read_json(path: Path) -> Any:
    """Parse a file.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); evaluate again") from error


def is_evaluation(data: Any) -> bool:
    """Whether this is what an evaluation writes."""
    return isinstance(data, dict) and data.get("kind") in KINDS and "provenance" in data


def collect(evaluations: Iterable[tuple[Path, dict]]) -> dict[Row, list[Value]]:
    """The values of each checkpoint, in the order of the files.

    Raises:
        UserError: a file without a needed entry; two different values of the same thing.
    """
    rows: dict[Row, list[Value]] = {}
    for path, data in evaluations:
        try:
            row, values = row_of(path, data), list(read_values(path, data))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{path} lacks what an evaluation holds ({error}); evaluate again"
            ) from error
        for value in values:
            add_value(rows.setdefault(row, []), value)
    return rows


def row_of(path: Path, data: dict) -> Row:
    """The row that a file belongs to."""
    checkpoint = data["provenance"]["checkpoint"]
    return Row(path.resolve().parent, checkpoint["sha256"], Path(checkpoint["path"]).name)


def collect_warnings(evaluations: Iterable[tuple[Path, dict]]) -> dict[Row, list[str]]:
    """What each checkpoint's evaluations warned of, each warning once."""
    found: dict[Row, list[str]] = {}
    for path, data in evaluations:
        known = found.setdefault(row_of(path, data), [])
        known += [text for text in data.get("warnings") or [] if text not in known]
    return found


def add_value(values: list[Value], new: Value) -> None:
    """Keep each value once. Two files may hold the same, but must not contradict each other."""
    for old in values:
        if (old.measure, old.conditions) == (new.measure, new.conditions):
            if (old.percent, old.n) != (new.percent, new.n):
                raise UserError(
                    f"{old.source} and {new.source} give two values of {new.measure} for one"
                    f" checkpoint, {old.percent:.2f} and {new.percent:.2f} %; name the file meant"
                )
            return
    values.append(new)


def read_values(path: Path, data: dict) -> Iterator[Value]:
    """The values of one file, in the table's order."""
    if data["kind"] == "attack":
        yield from attack_values(path, data)
    else:
        yield from imagenet_c_values(path, data)


def attack_values(path: Path, data: dict) -> Iterator[Value]:
    """Clean accuracy, robust accuracy under each attack, and the worst case; all top-1."""
    provenance = data["provenance"]
    images, search = image_conditions(provenance), search_conditions(provenance)
    # What AutoAttack has reached after some of its four attacks is no attack of its own.
    attacks = [attack for attack in data["attacks"] if not attack["name"].startswith("autoattack-")]
    yield accuracy(path, "Clean", images, data["clean"]["top1"])
    for attack in attacks:
        step = step_condition([attack["step_size"]] if attack["steps"] else [])
        conditions = (*search, *step, *images)
        yield accuracy(path, attack["label"], conditions, attack["top1"], attack.get("scale"))
    if worst := (data.get("worst_case") or {}).get("top1"):
        names = data.get("cascade") or [attack["name"] for attack in attacks]
        sizes = [attack["step_size"] for attack in attacks if attack["steps"]]
        if "cascade" in data:  # its attacks have no entries, since each saw a part of the images
            sizes = [row[1] for row in provenance["config"]["ADV"]["pgd_attack"]]
        conditions = (*search, *step_condition(sizes), ("over", " + ".join(names)), *images)
        yield accuracy(path, "Worst case", conditions, worst)


def imagenet_c_values(path: Path, data: dict) -> Iterator[Value]:
    """Mean accuracy over the 15 corruptions, and mCE where it could be had."""
    provenance, summary = data["provenance"], data["summary"]
    conditions = (("protocol", provenance["protocol"]), *image_conditions(provenance, "imagenet_c"))
    n = next(iter(data["corruptions"].values()))["top1"][0]["n"]
    if (mean := summary.get("mean_accuracy")) is not None:
        # The same n images stand behind all 75 counts. Taking n, not 75 n, keeps the interval
        # wide enough however strongly the outcomes of one image hang together.
        from utils.storage.intervals import wilson_interval

        interval = tuple(100 * bound for bound in wilson_interval(mean * n, n))
        yield Value("ImageNet-C mean", conditions, 100 * mean, interval, n, None, path)
    if (mce := summary.get("mCE")) is not None:
        yield Value("mCE", conditions, mce, None, n, None, path)


def accuracy(
    path: Path, measure: str, conditions: Conditions, entry: dict, scale: float | None = None
) -> Value:
    """A value from what files hold of an accuracy."""
    low, high = entry["interval95"]
    percent = 100 * entry["accuracy"]
    return Value(measure, conditions, percent, (100 * low, 100 * high), entry["n"], scale, path)


def image_conditions(provenance: Mapping, kind: str = "attack") -> Conditions:
    """Which images, and how they became the network's input."""
    subset = provenance["subset"]
    images = (("images", subset["description"]), ("image list", subset["sha256"][:12]))
    data = (provenance.get("config") or {}).get("DATA") or {}
    if "crop_size" not in data:
        return images
    resized = kind == "attack" or provenance["protocol"] != "standard"
    resize = f"resize {data['img_size']}, " if resized and data.get("img_size") else ""
    return (*images, ("input", f"{resize}crop {data['crop_size']}"))


def search_conditions(provenance: Mapping) -> Conditions:
    """Under which rules attacks looked for adversarial images."""
    return (
        ("protocol", provenance["protocol"]),
        ("eps", per_255(provenance["eps"])),
        ("search in", provenance["precision"]),
    )


def step_condition(sizes: Sequence[float]) -> Conditions:
    """Step sizes in [0, 1]. Labels tell steps, loss and restarts; the scale is the network's."""
    steps = dict.fromkeys(per_255(size) for size in sizes)
    return (("step", " and ".join(steps)),) if steps else ()


def per_255(value: float) -> str:
    """A distance in [0, 1] as a part of 255: `4/255`."""
    return f"{round(255 * value, 4):g}/255"
