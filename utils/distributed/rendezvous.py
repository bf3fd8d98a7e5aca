"""Where the processes of torchrun meet: a new place for every attempt.

torchrun keeps one key-value store through all of its restarts. Processes of a later attempt would
find there what those of an earlier one wrote, ports above all, and wait for processes that are
gone (pytorch/pytorch issue 135712). So all agree on a number for their attempt first, and then use
only keys under that number.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch import distributed
from torch.distributed.rendezvous import rendezvous

START_TIMEOUT = timedelta(minutes=30)  # as torch's own, for machines that start one after the other


def store_of_attempt(rank: int, world_size: int) -> distributed.Store:
    """A key-value store that all processes of this attempt share, and no others.

    Reads the address from the environment, as `init_method="env://"` does.
    """
    store = next(rendezvous("env://", timeout=START_TIMEOUT))[0]
    return distributed.PrefixStore(f"attempt {agree(store, rank, world_size)}", store)


def agree(store: distributed.Store, rank: int, world_size: int) -> int:
    """The number of this attempt, the same on all processes.

    Rank 0 counts the attempts. The others tell it a name that nobody had before, and know by its
    answer that the number is not one of an earlier attempt.

    Raises:
        RuntimeError: the others did not come.
    """
    if rank == 0:
        attempt = store.add("attempt", 1)
        names = [store.get(f"{attempt} has {other}") for other in range(1, world_size)]  # waits
        store.set(f"{attempt} is", b",".join(names).decode())
        return attempt
    name, deadline = uuid.uuid4().hex, time.monotonic() + START_TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        attempt = store.add("attempt", 0)
        store.set(f"{attempt} has {rank}", name)
        answer = f"{attempt} is"
        if store.check([answer]) and name in store.get(answer).decode().split(","):
            return attempt
        time.sleep(0.05)
    raise RuntimeError(f"process {rank} got no answer from process 0")
