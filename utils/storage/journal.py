"""Rows of an evaluation on the disk as they come, so that an interruption loses none.

Every process appends to a file of its own, `<stem>.rank0of2.jsonl`: a first line that says what is
being evaluated, then lines of rows, `{"phase": "pgd10", "rows": {"17": [3, true, true, false]}}`.
JSON Lines, because appending to one is safe on network file systems.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.storage.files import make_folder

SECONDS_BETWEEN_WRITES = 5.0
Rows = dict[Any, Any]  # by key: an image's position, a folder's name
# (phase, key, values) to the (key, row) that `ResumableRows.found` holds.
ReadRow = Callable[[str, str, list[Any]], tuple[Any, Any]]


class ResumableRows:
    """What an interrupted evaluation has finished, and a place for what is finished next.

    Args:
        stem: path of the results without extension; the journals lie beside it.
        fingerprint: what the journals must have been written for.
        context: the processes, which all open theirs together.
        read_row: makes a row; TypeError or ValueError say that it is damaged.

    Attributes:
        found: by phase, the rows that all processes of earlier runs have left; the same on all.

    Raises:
        UserError: a journal is damaged, belongs to another evaluation, or cannot be written.
    """

    def __init__(
        self,
        stem: Path,
        fingerprint: Mapping[str, Any],
        context: DistributedContext,
        read_row: ReadRow,
    ) -> None:
        self.stem, self.fingerprint, self.read_row = stem, fingerprint, read_row
        self.found: dict[str, Rows] = {}
        own = context.run_and_share_errors(lambda: self.read(context.rank, context.world_size))
        for part in context.gather(own):
            for phase, rows in part.items():
                self.found.setdefault(phase, {}).update(rows)
        self.path = stem.with_name(f"{stem.name}.rank{context.rank}of{context.world_size}.jsonl")
        self.file = context.run_and_share_errors(self.open)
        self.unwritten: dict[str, Rows] = {}
        self.written_at = time.monotonic()

    def read(self, rank: int, world_size: int) -> dict[str, Rows]:
        """The rows of this process's share of the journals: its own and those of ranks beyond."""
        make_folder(self.stem.parent)
        found: dict[str, Rows] = {}
        for path, its_rank in journals(self.stem).items():
            if its_rank % world_size == rank:
                for phase, rows in read_journal(path, self.fingerprint, self.read_row):
                    found.setdefault(phase, {}).update(rows)
        return found

    def open(self) -> BinaryIO:
        """This process's file, less a line that an interruption has cut short."""
        try:
            file = open(self.path, "ab+")
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            if file.tell() == 0:
                append(file, self.fingerprint)
        except OSError as error:
            raise unwritable(self.path, error) from error
        return file

    def add(self, phase: str, rows: Mapping[Any, Any]) -> None:
        """Keep rows: in memory at once, on the disk within `SECONDS_BETWEEN_WRITES`."""
        self.unwritten.setdefault(phase, {}).update(rows)
        if time.monotonic() - self.written_at > SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Write what has been added through to the disk.

        Raises:
            UserError: the disk is full.
        """
        try:
            for phase, rows in self.unwritten.items():
                append(self.file, {"phase": phase, "rows": rows})
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.unwritten, self.written_at = {}, time.monotonic()

    def __enter__(self) -> ResumableRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def append(file: BinaryIO, entry: Mapping[str, Any]) -> None:
    """Write one line through to the disk."""
    file.write(json.dumps(entry).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def unwritable(path: Path, error: OSError) -> UserError:
    """The user error of a failed write."""
    return UserError(
        f"cannot write {path}: {error.strerror}; free some space, then give the same command again"
        " to resume"
    )


def journals(stem: Path) -> dict[Path, int]:
    """The journals that are there, in order, and the rank that wrote each."""
    pattern = re.compile(re.escape(stem.name) + r"\.rank(\d+)of\d+\.jsonl")
    matches = {path: pattern.fullmatch(path.name) for path in sorted(stem.parent.iterdir())}
    return {path: int(match[1]) for path, match in matches.items() if match}


def read_journal(
    path: Path, fingerprint: Mapping[str, Any], read_row: ReadRow
) -> list[tuple[str, Rows]]:
    """The phases and rows of a file's lines.

    Raises:
        UserError: it is damaged, or belongs to another evaluation; says what differs.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was cut short
        entries = [json.loads(line) for line in lines]
        differing = differences(entries[0], fingerprint) if entries else {}
        if differing and len(entries) == 1:  # nothing was finished, so nothing is lost
            path.unlink()
        elif not differing:
            return [read_entry(entry, read_row) for entry in entries[1:]]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged; remove it to evaluate from scratch") from error
    if len(entries) > 1:
        what = "; ".join(f"{key} {was}, now {now}" for key, (was, now) in differing.items())
        raise UserError(
            f"{path} holds an unfinished evaluation of something else ({what}); finish that with"
            " its own command, or remove the file to evaluate from scratch"
        )
    return []


def differences(
    found: dict[str, Any], fingerprint: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """What two fingerprints have under each key in which they differ."""
    now = json.loads(json.dumps(fingerprint))
    return {
        key: (brief(found.get(key)), brief(now[key])) for key in now if found.get(key) != now[key]
    }


def brief(value: Any) -> str:
    """A value of the fingerprint, cut to what a line can hold."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def read_entry(entry: dict[str, Any], read_row: ReadRow) -> tuple[str, Rows]:
    """One line's phase and rows; raises what `json.loads` and wrong types raise."""
    rows: dict[str, list[Any]] = entry["rows"]
    if any(not isinstance(value, (int, float)) for row in rows.values() for value in row):
        raise TypeError("a row holds numbers")
    phase: str = entry["phase"]
    return phase, dict(read_row(phase, key, values) for key, values in rows.items())


def remove_journals(stem: Path) -> None:
    """The evaluation is complete and saved: its journals have done their work."""
    for path in journals(stem):
        path.unlink(missing_ok=True)
