"""Result files of evaluations as typed records, written and read here alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.storage.earlier_results import measurement_of_earlier
from utils.storage.files import write_json
from utils.storage.intervals import Accuracy, read_accuracy
from utils.storage.measurement import KINDS, Measurement, filename_suffix, measurement_from
from utils.storage.records import (
    AttackAccuracies,
    AttackResult,
    CleanAccuracies,
    CleanReference,
    CorruptionAccuracies,
    ImageNetCResult,
    Result,
    ShiftAccuracies,
    ShiftResult,
    Summary,
    TopAccuracies,
)

LONGEST_NAME = 180  # bytes; file systems take 255, endings and numbers of processes come on top


def write_result(path: Path, result: Result) -> None:
    """Write a result as JSON, whole or not at all."""
    write_json(path, {"kind": result.measurement.kind, **plain(result)})


def plain(value: Any) -> Any:
    """A record as JSON's values. A field that may be left out is, where it is None."""
    if isinstance(value, Accuracy):
        return value.as_json()
    if isinstance(value, Measurement):
        return value.fingerprint()
    if is_dataclass(value):
        pairs = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: plain(v) for f, v in pairs if v is not None or f.default is MISSING}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def read_json(path: Path) -> Any:
    """Parse a file.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        cause = str(error) if isinstance(error, ValueError) else "nested too deep"
        raise UserError(f"{path} is not JSON ({cause}); evaluate again") from error


def is_result(data: Any) -> bool:
    """Whether this is what an evaluation writes."""
    return isinstance(data, dict) and data.get("kind") in KINDS and "provenance" in data


def read_result(path: Path) -> Result:
    """A result file, of this or an earlier version.

    Raises:
        UserError: it cannot be read, or is another kind of file.
    """
    data = read_json(path)
    if not is_result(data):
        raise UserError(f"{path} is no evaluation of attacks, ImageNet-C or shifted test sets")
    return parse_result(path, data)


def parse_result(path: Path, data: Mapping[str, Any]) -> Result:
    """As `read_result`, of the file's content."""
    parsers = (parse_attack, parse_imagenet_c, parse_shift)
    parse: Callable[[Measurement, Mapping[str, Any]], Result] = dict(
        zip(KINDS, parsers, strict=True)
    )[data["kind"]]
    try:
        if "measurement" in data:
            measurement = measurement_from(data["measurement"])
        else:
            measurement = measurement_of_earlier(data)
        return parse(measurement, data)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path} lacks what an evaluation holds ({error}); evaluate again"
        ) from error


def read_tops(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Top-1 and top-5 of an entry."""
    return {top: read_accuracy(entry[top]) for top in ("top1", "top5") if top in entry}


def parse_attack(measurement: Measurement, data: Mapping[str, Any]) -> AttackResult:
    """An attack evaluation's record."""
    keys = ("name", "label", "steps", "step_size", "loss", "restarts")
    attacks = [
        AttackAccuracies(
            **read_tops(entry), scale=entry.get("scale"), **{key: entry[key] for key in keys}
        )
        for entry in data["attacks"]
    ]
    return AttackResult(
        measurement,
        data["provenance"],
        CleanAccuracies(**read_tops(data["clean"]), loss=data["clean"]["loss"]),
        tuple(attacks),
        TopAccuracies(**read_tops(data["worst_case"])),
        tuple(data["cascade"]) if "cascade" in data else None,
        warnings=tuple(data.get("warnings") or ()),
    )


def parse_imagenet_c(measurement: Measurement, data: Mapping[str, Any]) -> ImageNetCResult:
    """An ImageNet-C evaluation's record."""
    corruptions = {
        name: CorruptionAccuracies(
            entry["group"], *(tuple(map(read_accuracy, entry[top])) for top in ("top1", "top5"))
        )
        for name, entry in data["corruptions"].items()
    }
    return ImageNetCResult(
        measurement,
        data["provenance"],
        corruptions,
        CleanReference(**data["clean"]),
        Summary(**{f.name: data["summary"][f.name] for f in fields(Summary)}),
        warnings=tuple(data.get("warnings") or ()),
    )


def parse_shift(measurement: Measurement, data: Mapping[str, Any]) -> ShiftResult:
    """The record of an evaluation on shifted test sets."""
    tops = ("top1", "top5", "present_top1", "present_top5")
    sets = {
        name: ShiftAccuracies(
            entry["classes"], entry["images"], *(read_accuracy(entry[top]) for top in tops)
        )
        for name, entry in data["sets"].items()
    }
    warnings = tuple(data.get("warnings") or ())
    return ShiftResult(measurement, data["provenance"], sets, warnings=warnings)


def find_results(paths: Sequence[Path]) -> dict[Path, Result]:
    """Every evaluation named, and every one in the run folders named; each once.

    Raises:
        UserError: a path that is not there, a folder without evaluations, another kind of file.
    """
    found: dict[Path, Result] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = read_result(path)
            continue
        inside = {file: read_json(file) for file in sorted(path.glob("*.json"))}
        results = {file: parse_result(file, d) for file, d in inside.items() if is_result(d)}
        if not results:
            raise UserError(f"{path} holds no evaluation; make one with evaluate.py -e")
        found.update(results)
    return found


def result_stem(folder: Path, measured: Measurement, usual: Measurement) -> Path:
    """Path of a measurement's files without extension: `attack_standard`, with a suffix or not.

    Where a result of something else has that name (of other images, say), a digest is added. The
    result of a checkpoint that has been replaced since is in nobody's way.

    Args:
        usual: see `filename_suffix`.
    """
    start = f"{measured.kind}_{measured.protocol}"
    stem = folder / f"{start}{filename_suffix(measured, usual)}"
    if len(os.fsencode(stem.name)) > LONGEST_NAME:
        stem = folder / f"{start}_{measured.digest}"
    there = measurement_at(stem)
    if there is None or replace(there, checkpoint=measured.checkpoint) == measured:
        return stem
    return stem.with_name(f"{stem.name}_{measured.digest}")


def measurement_at(stem: Path) -> Measurement | None:
    """What the result of this name measures; None where there is none that can be read."""
    try:
        return read_result(stem.with_name(f"{stem.name}.json")).measurement
    except UserError:
        return None
