"""Result files of evaluations as typed records, written and read here alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from utils.errors import UserError
from utils.storage.earlier_results import measurement_of_earlier
from utils.storage.files import write_json
from utils.storage.intervals import Accuracy, read_accuracy
from utils.storage.measurement import KINDS, Measurement, filename_suffix
from utils.storage.records import AttackResult, ImageNetCResult, Result, ShiftResult

Kind = TypeVar("Kind", bound=Result)
LONGEST_NAME = 180  # bytes; file systems take 255, endings and numbers of processes come on top
RECORDS = dict(zip(KINDS, (AttackResult, ImageNetCResult, ShiftResult), strict=True))


def write_result(path: Path, result: Result) -> None:
    """Write a result as JSON, whole or not at all."""
    write_json(path, {"kind": result.measurement.kind, **plain(result)})


def plain(value: Any) -> Any:
    """A record as JSON's values. A field that may be left out is, where it is None."""
    if isinstance(value, Accuracy):
        return value.as_json()
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
    return isinstance(data, dict) and data.get("kind") in RECORDS and "provenance" in data


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
    try:
        values = {**data, "warnings": data.get("warnings") or ()}
        if "measurement" not in values:
            values["measurement"] = plain(measurement_of_earlier(data))
        result: Result = read_as(RECORDS[data["kind"]], values)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path} lacks what an evaluation holds ({error}); evaluate again"
        ) from error
    return result


def read_as(kind: Any, value: Any) -> Any:
    """JSON's values as what a record's annotations say: `plain` the other way round.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: they hold something else.
    """
    if kind is Accuracy:
        return read_accuracy(value)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        # What may be None, or has a default, need not be there.
        there = {name: None for name, hint in hints.items() if type(None) in get_args(hint)} | value
        usual = {f.name for f in fields(kind) if f.default is not MISSING} - there.keys()
        return kind(**{k: read_as(hint, there[k]) for k, hint in hints.items() if k not in usual})
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        return tuple(read_as(arguments[0], entry) for entry in value)
    if get_origin(kind) is Mapping:
        return {key: read_as(arguments[1], entry) for key, entry in value.items()}
    if type(None) in arguments and value is not None:
        return read_as(arguments[0], value)
    return value


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


def only_result(run: Path, kind: type[Kind]) -> Kind:
    """The one evaluation of its kind in a run folder."""
    (result,) = (r for r in find_results([run]).values() if isinstance(r, kind))
    return result


def result_stem(folder: Path, measured: Measurement, usual: Measurement) -> Path:
    """Path of a measurement's files without extension: `attack_standard`, with a suffix or not.

    Where a result of something else has that name (of other images, say), a digest is added. The
    result of a file whose content has changed since is replaced.

    Args:
        usual: see `filename_suffix`.
    """
    start = f"{measured.kind}_{measured.protocol}"
    stem = folder / f"{start}{filename_suffix(measured, usual)}"
    if len(os.fsencode(stem.name)) > LONGEST_NAME:
        stem = folder / f"{start}_{measured.digest}"
    there = measurement_at(stem)
    if there is None or (
        replace(there, checkpoint=measured.checkpoint) == measured
        and there.checkpoint_name == measured.checkpoint_name
    ):
        return stem
    return stem.with_name(f"{stem.name}_{measured.digest}")


def measurement_at(stem: Path) -> Measurement | None:
    """What the result of this name measures; None where there is none that can be read."""
    try:
        return read_result(stem.with_name(f"{stem.name}.json")).measurement
    except UserError:
        return None
