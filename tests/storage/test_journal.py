"""What an interrupted evaluation leaves, and what a damaged journal answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.storage import journal
from utils.storage.journal import ResumableRows, remove_journals

ONE = DistributedContext(0, 1, torch.device("cpu"))
SAME = {"checkpoint": "a" * 64, "eps": 4 / 255, "sizes": (256, None)}


class Pair(NamedTuple):
    number: int
    right: bool


def read_row(_: str, key: str, values: list) -> tuple[int, Pair]:
    return int(key), Pair(*values)


def opened(stem: Path, **changes: object) -> ResumableRows:
    return ResumableRows(stem, SAME | changes, ONE, read_row)


def kept(stem: Path) -> dict:
    with opened(stem) as rows:
        return rows.found


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    """A journal with two phases, whose last line was cut short."""
    stem = tmp_path / "new" / "attack_s10.0"
    with opened(stem) as rows:
        assert rows.found == {}
        rows.add("clean", {0: Pair(3, True), 7: Pair(1, False)})
        rows.add("pgd1", {0: Pair(2, False)})
        rows.flush()
    path = stem.with_name("attack_s10.0.rank0of1.jsonl")
    path.write_bytes(path.read_bytes() + b'{"phase": "pgd1", "rows": {"7')
    return stem


def test_rows_come_back(stem: Path) -> None:
    expected = {"clean": {0: Pair(3, True), 7: Pair(1, False)}, "pgd1": {0: Pair(2, False)}}
    assert kept(stem) == expected
    with opened(stem) as rows:  # the line that was cut short is gone: what follows can be read
        rows.add("pgd1", {7: Pair(4, True)})
        rows.flush()
    assert kept(stem)["pgd1"] == {0: Pair(2, False), 7: Pair(4, True)}
    assert type(kept(stem)["clean"][0].right) is bool
    remove_journals(stem)
    assert list(stem.parent.iterdir()) == []


def test_rows_of_other_processes_come_back(stem: Path) -> None:
    """Three processes have been at work; now it is one."""
    lines = [SAME, {"phase": "pgd1", "rows": {"5": [5, False]}}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    stem.with_name(f"{stem.name}.rank2of3.jsonl").write_text(text)
    assert kept(stem)["pgd1"] == {0: Pair(2, False), 5: Pair(5, False)}


def test_what_is_added_is_soon_on_the_disk(stem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(stem) as rows:
        rows.add("pgd1", {8: Pair(1, True)})
        assert 8 not in kept(stem)["pgd1"]
        monkeypatch.setattr(journal, "SECONDS_BETWEEN_WRITES", -1.0)
        rows.add("pgd1", {9: Pair(1, True)})
        assert {8, 9} <= kept(stem)["pgd1"].keys()


def test_rows_of_something_else_are_not_mixed_in(stem: Path) -> None:
    with pytest.raises(UserError) as caught:
        opened(stem, eps=0.5, sizes=(256, 224))
    assert "eps 0.01568627450980392, now 0.5; sizes 256, None, now 256, 224" in str(caught.value)
    remove_journals(stem)
    opened(stem).file.close()  # begun, and nothing finished: nothing is in the way
    assert opened(stem, eps=0.5).found == {}


FIRST = json.dumps(SAME)


@pytest.mark.parametrize(
    "text",
    [
        "what",
        "[]",
        "7",
        "[" * 100_000,
        "\udcff",
        FIRST + "\n[]",
        FIRST + "\n{}",
        FIRST + '\n{"phase": "clean", "rows": []}',
        FIRST + '\n{"phase": "clean", "rows": {"a": [1, true]}}',
        FIRST + '\n{"phase": "clean", "rows": {"1": [1]}}',
        FIRST + '\n{"phase": "clean", "rows": {"1": ["1", true]}}',
        FIRST + '\n{"phase": "clean", "rows": {"1": 1}}',
        FIRST + "\n" + "[" * 100_000,
        FIRST + "\n" + '{"a":' * 100_000,
    ],
    ids=range(14),
)
def test_a_damaged_journal_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "attack.rank0of1.jsonl"
    path.write_text(text + "\n", errors="surrogateescape")
    with pytest.raises(UserError, match=r"rank0of1\.jsonl is damaged") as caught:
        opened(tmp_path / "attack")
    assert "\n" not in str(caught.value)
