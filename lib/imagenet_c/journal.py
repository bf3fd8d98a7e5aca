"""What an interrupted ImageNet-C evaluation has left, by group and process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.storage.files import make_folder
from utils.storage.journal import Journal, journal_path, journals, read_journal

Counts = dict[str, list[int]]  # by group name: top-1 right, top-5 right, images


def keep(journal: Journal, group: str, counts: list[int]) -> None:
    """Write a finished group's counts through to the disk."""
    top1, top5, n = counts
    journal.append({"group": group, "top1": top1, "top5": top5, "n": n})


def read_counts(path: Path, fingerprint: Mapping[str, Any]) -> Counts:
    """The groups of which one process has finished its share.

    Raises:
        UserError: the file is damaged, or belongs to another evaluation.
    """
    entries = read_journal(path, fingerprint)
    try:
        return {entry["group"]: [entry["top1"], entry["top5"], entry["n"]] for entry in entries}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; remove it to evaluate from the start") from error


def finished_groups(
    stem: Path, fingerprint: Mapping[str, Any], context: DistributedContext
) -> tuple[Counts, Counts]:
    """What needs no evaluation any more.

    Returns:
        groups that all processes of some run had finished, their counts added up, the same on
        every process; and further ones of which this process had finished its share, in a run of
        as many processes as now.

    Raises:
        UserError: the files belong to another evaluation.
    """

    def find() -> Counts:
        if not context.is_main:
            return {}  # one process reads them all, and tells the others
        make_folder(stem.parent)
        return complete_groups(stem, fingerprint)

    complete = context.gather(context.run_and_share_errors(find))[0]
    path = journal_path(stem, context.rank, context.world_size)
    own = context.run_and_share_errors(lambda: read_counts(path, fingerprint))
    return complete, {name: counts for name, counts in own.items() if name not in complete}


def complete_groups(stem: Path, fingerprint: Mapping[str, Any]) -> Counts:
    """Groups that are in the files of all processes of some run, with their counts added up."""
    files = {key: read_counts(path, fingerprint) for key, path in journals(stem).items()}
    complete: Counts = {}
    for world_size in {size for _, size in files}:
        shares = [files.get((rank, world_size), {}) for rank in range(world_size)]
        for name in set(shares[0]).intersection(*shares):
            complete[name] = add_up([share[name] for share in shares])
    return complete


def add_up(shares: list[list[int]]) -> list[int]:
    """Element-wise sums."""
    return [sum(column) for column in zip(*shares, strict=True)]
