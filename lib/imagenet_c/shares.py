"""What every process has counted of every group of images, and what that adds up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from utils.distributed.context import DistributedContext

Counts = dict[str, "GroupCounts"]  # by group name, `gaussian_noise/1`


class GroupCounts(NamedTuple):
    """Images of a group, and how many of them are right in top-1 and in top-5."""

    top1: int
    top5: int
    n: int


def share_name(rank: int, world_size: int) -> str:
    """The journal's phase for the share of one process."""
    return f"rank {rank} of {world_size}"


def read_counts(phase: str, group: str, values: list[int]) -> tuple[str, GroupCounts]:
    """A row of the journal; ValueError or TypeError where it is damaged."""
    int(phase.rpartition(" ")[2])
    return group, GroupCounts(*values)


def finished_groups(
    found: Mapping[str, Counts], context: DistributedContext
) -> tuple[Counts, Counts]:
    """What needs no evaluation any more.

    Args:
        found: by `share_name`, the counts that interrupted runs have left.

    Returns:
        groups of which all processes of some run had finished their shares, added up; and further
        ones of which this process had finished its share, in a run of as many processes as now.
    """
    complete: Counts = {}
    for world_size in {int(phase.rpartition(" ")[2]) for phase in found}:
        shares = [found.get(share_name(rank, world_size), {}) for rank in range(world_size)]
        for name in set(shares[0]).intersection(*shares):
            complete[name] = add_up(share[name] for share in shares)
    own = found.get(share_name(context.rank, context.world_size), {})
    return complete, {name: counts for name, counts in own.items() if name not in complete}


def add_up(shares: Iterable[GroupCounts]) -> GroupCounts:
    """Element-wise sums."""
    return GroupCounts(*map(sum, zip(*shares, strict=True)))
