"""Rows of an evaluation on the disk as they come, so that an interruption loses none.

Every process appends to a file of its own, `unfinished_1a2b3c4d.rank0.jsonl`, named by a digest of
the evaluation's conditions: what other conditions have left is never mixed in. A line holds rows by
key, `{"phase": "pgd10", "rows": {"17": [3, true, true, false]}}`, whatever the number of processes.
JSON Lines, because appending to one is safe on network file systems.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.distributed.context import DistributedContext
from utils.errors import Interrupted, UserError
from utils.storage.files import make_folder

SECONDS_BETWEEN_WRITES = 5.0
Rows = dict[Any, Any]  # by key: an image's position, a folder's chunk
# (phase, key, values) to the (key, row) that `ResumableRows.found` holds.
ReadRow = Callable[[str, str, list[Any]], tuple[Any, Any]]


class ResumableRows:
    """What an interrupted evaluation has finished, and a place for what is finished next."""

    def __init__(
        self, folder: Path, digest: str, context: DistributedContext, read_row: ReadRow
    ) -> None:
        self.folder, self.digest, self.read_row = folder, digest, read_row
        self.context = context
        self.path = folder / f"unfinished_{digest}.rank{context.rank}.jsonl"
        self.found: dict[str, Rows] = {}  # by phase, of all earlier processes; the same on all
        own = context.run_and_share_errors(self.begin)
        for lines in context.gather(own):
            for phase, rows in lines:
                self.found.setdefault(phase, {}).update(rows)
        self.unwritten: dict[str, Rows] = {}
        self.written_at = time.monotonic()

    def begin(self) -> list[tuple[str, Rows]]:
        """The lines of this process's share of the journals: its own and those of ranks beyond."""
        make_folder(self.folder)
        lines = []
        try:
            self.file = open(self.path, "ab")
            for path in journals(self.folder, self.digest):
                rank = int(path.suffixes[-2].removeprefix(".rank"))
                if rank % self.context.world_size == self.context.rank:
                    lines += list(readable_lines(path.read_bytes(), self.read_row))
        except OSError as error:
            raise UserError(
                f"cannot use {error.filename}: {error.strerror}; change its permissions, or delete"
                " it to begin this evaluation anew"
            ) from error
        return lines

    def add(self, phase: str, rows: Mapping[Any, Any]) -> None:
        """Keep rows: in memory at once, on the disk within `SECONDS_BETWEEN_WRITES`."""
        self.unwritten.setdefault(phase, {}).update(rows)
        if time.monotonic() - self.written_at > SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Write what has been added through to the disk."""
        try:
            for phase, rows in self.unwritten.items():
                # On a line of its own, even behind one that an interruption has cut short.
                self.file.write(b"\n" + json.dumps({"phase": phase, "rows": rows}).encode())
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some space, then give the same"
                " command again to resume"
            ) from error
        self.unwritten, self.written_at = {}, time.monotonic()

    def share(self, phase: str, rows: Mapping[Any, Any]) -> Rows:
        """Every process's rows of a phase that has ended, with those found before."""
        self.flush()
        shared = dict(self.found.get(phase, {}))
        for others in self.context.gather(rows):
            shared.update(others)
        return shared

    def __enter__(self) -> "ResumableRows":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Interrupted):
            error.state = "; what is done is kept for the same evaluation"
            self.flush()
        with suppress(OSError):  # of a full disk, which has been reported
            self.file.close()


def readable_lines(content: bytes, read_row: ReadRow) -> Iterator[tuple[str, Rows]]:
    """Phase and rows of each line; what was cut short or damaged is evaluated again."""
    for line in content.split(b"\n"):
        try:
            entry = json.loads(line)
            phase, rows = entry["phase"], entry["rows"].items()
            yield phase, dict(read_row(phase, key, values) for key, values in rows)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            continue


def journals(folder: Path, digest: str) -> list[Path]:
    """What all processes of all runs under some conditions have left."""
    return sorted(folder.glob(f"unfinished_{digest}.rank*.jsonl"))


def remove_journals(folder: Path, digest: str) -> None:
    """The evaluation is complete and saved: its journals have done their work."""
    for path in journals(folder, digest):
        path.unlink(missing_ok=True)
