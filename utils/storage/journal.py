"""Results on the disk as they come, one JSON line each, so that an interruption loses none.

Every process has a file of its own, `<stem>.rank0of2.jsonl`: a first line that says what is being
evaluated, then the entries.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import UserError


class Journal:
    """Appends lines to one process's file.

    Args:
        path: the file; a line that an interruption has cut short is cut off.
        fingerprint: its first line, written where there is none.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = path
        try:
            self.file: BinaryIO = open(path, "ab+")
            self.file.seek(0)
            self.file.truncate(self.file.read().rfind(b"\n") + 1)
        except OSError as error:
            raise unwritable(path, error) from error
        if self.file.tell() == 0:
            self.append(fingerprint)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line through to the disk.

        Raises:
            UserError: the disk is full.
        """
        try:
            self.file.write(json.dumps(entry).encode() + b"\n")
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Done with."""
        self.file.close()


def unwritable(path: Path, error: OSError) -> UserError:
    """What to tell the user."""
    return UserError(
        f"cannot write {path}: {error.strerror}; free some space, then give the same command again"
        " to go on"
    )


def journal_path(stem: Path, rank: int, world_size: int) -> Path:
    """The file of one process."""
    return stem.with_name(f"{stem.name}.rank{rank}of{world_size}.jsonl")


def journals(stem: Path) -> dict[tuple[int, int], Path]:
    """The files that are there, by (rank, world_size)."""
    pattern = re.compile(re.escape(stem.name) + r"\.rank(\d+)of(\d+)\.jsonl")
    matches = {path: pattern.fullmatch(path.name) for path in stem.parent.iterdir()}
    return {(int(m[1]), int(m[2])): path for path, m in matches.items() if m}


def read_journal(path: Path, fingerprint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of a file; none where there is no file.

    Raises:
        UserError: it is damaged, or belongs to another evaluation; says what differs.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was cut short
        entries = [json.loads(line) for line in lines]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged; remove it to evaluate from the start") from error
    if not entries:
        return []
    found = entries[0]
    differing = [key for key in fingerprint if found.get(key) != fingerprint[key]]
    if differing and len(entries) == 1:  # nothing was finished, so nothing is lost
        path.unlink(missing_ok=True)  # every process finds it so
        return []
    if differing:
        what = "; ".join(
            f"{key} {brief(found.get(key))}, now {brief(fingerprint[key])}" for key in differing
        )
        raise UserError(
            f"{path} holds an unfinished evaluation of something else ({what}); finish that with"
            " its own command, or remove the file to evaluate from the start"
        )
    return entries[1:]


def brief(value: Any) -> str:
    """A value of the fingerprint, cut to what a line can hold."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def remove_journals(stem: Path) -> None:
    """The evaluation is complete and saved: its journals have done their work."""
    for path in journals(stem).values():
        path.unlink(missing_ok=True)
