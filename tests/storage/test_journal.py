"""What an interrupted evaluation leaves, and what is made of a damaged journal."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from in_process import user_error

from utils.distributed.context import DistributedContext
from utils.storage.journal import ResumableRows, remove_journals

ONE = DistributedContext(0, 1, torch.device("cpu"))
LINE = b'\n{"phase": "pgd1", "rows": {"5": [5, false]}}'


class Pair(NamedTuple):
    number: int
    right: bool


def read_row(_: str, key: str, values: list) -> tuple[int, Pair]:
    return int(key), Pair(*values)


def opened(folder: Path, digest: str = "1a2b3c4d") -> ResumableRows:
    return ResumableRows(folder, digest, ONE, read_row)


def kept(folder: Path, digest: str = "1a2b3c4d") -> dict:
    with opened(folder, digest) as rows:
        return rows.found


def test_rows_come_back(tmp_path: Path) -> None:
    clean, folder = {0: Pair(3, True), 7: Pair(1, False)}, tmp_path / "new"
    with opened(folder) as rows:
        assert rows.found == {}
        rows.add("clean", clean)
        rows.add("pgd1", {0: Pair(2, False)})
        rows.flush()
    rows.path.write_bytes(rows.path.read_bytes() + b'\n{"phase": "pgd1", "rows": {"7')
    with opened(folder) as rows:  # behind the line that was cut short
        rows.add("pgd1", {7: Pair(4, True)})
        rows.flush()
    (folder / "unfinished_1a2b3c4d.rank2.jsonl").write_bytes(LINE)  # three processes, now it is one
    pgd = {0: Pair(2, False), 5: Pair(5, False), 7: Pair(4, True)}
    assert kept(folder) == {"clean": clean, "pgd1": pgd}
    # Those of other conditions are neither read nor removed.
    assert kept(folder, "ffffffff") == {}
    remove_journals(folder, "1a2b3c4d")
    assert [path.name for path in folder.iterdir()] == ["unfinished_ffffffff.rank0.jsonl"]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_journal_that_cannot_be_read(tmp_path: Path, rank: int) -> None:
    (tmp_path / f"unfinished_1a2b3c4d.rank{rank}.jsonl").mkdir()
    assert f"rank{rank}.jsonl: Is a directory" in user_error(opened, tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        *(b"what", b"[]", b"7", b"\xff", b"{}", b'{"a":' * 100_000),
        b'{"phase": "clean", "rows": []}',
        b'{"phase": "clean", "rows": {"a": [1, true]}}',
        b'{"phase": "clean", "rows": {"1": [1]}}',
        b'{"phase": "clean", "rows": {"1": 1}}',
    ],
    ids=range(10),
)
def test_what_is_damaged_is_done_again(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "unfinished_1a2b3c4d.rank0.jsonl").write_bytes(b"\n" + line + LINE)
    assert kept(tmp_path) == {"pgd1": {5: Pair(5, False)}}
