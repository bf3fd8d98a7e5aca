"""Processes: who this one is, what they say to each other, and starting one on every GPU."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from utils.distributed.device import choose_device, gpu_identity, require_own_gpus, take_device
from utils.distributed.machine import allowed_cores, machine_identity, share_of_cores
from utils.distributed.rendezvous import store_of_attempt
from utils.distributed.signals import STOP_SIGNALS, handling
from utils.errors import SharedUserError, UserError

T = TypeVar("T")
# A process may wait for another that still evaluates or saves; one that died is noticed at once,
# because its connection closes.
TIMEOUT = timedelta(hours=24)
# What gloo and NCCL say when a process that they talk to is gone.
GONE = re.compile(
    r"(closed|reset) by peer|broken pipe|remote process exited|communicator was aborted",
    re.IGNORECASE,
)
# Readers are forked after NCCL has begun: libibverbs keeps the memory of InfiniBand apart if told
# to, on large pages, too.
FORK_SAFE = ("IBV_FORK_SAFE", "RDMAV_FORK_SAFE", "RDMAV_HUGEPAGES_SAFE")


@dataclass(frozen=True)
class DistributedContext:
    """This process among its peers.

    Attributes:
        rank: its number, 0 for the one that writes and prints.
        world_size: how many there are.
        device: where it computes.
        control: a gloo group for Python objects and flags, so that talking to each other never
            waits for a GPU; None alone.
        local_processes: how many of them run on this machine.
        cores: of this machine that fall to this process.
    """

    rank: int
    world_size: int
    device: torch.device
    control: Any = None
    local_processes: int = 1
    cores: int = field(default_factory=lambda: len(allowed_cores()))

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.control)
        return values

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over the processes, in rank order and so the same everywhere."""
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    def max(self, value: int) -> int:
        """The largest of every process's small whole number."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=self.control)
        return int(tensor)

    def barrier(self) -> None:
        self.gather(None)

    def average_(self, tensors: list[torch.Tensor]) -> None:
        """Average tensors over the processes, in place, on the device."""
        if self.world_size > 1:
            with joined(tensors) as flat:
                distributed.all_reduce(flat)
                flat /= self.world_size

    def copy_from_main_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process rank 0's values, in place, in one message for each type."""
        if self.world_size == 1:
            return
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for alike in by_type.values():
            with joined(alike) as flat:
                distributed.broadcast(flat, src=0)

    def gather_strided(self, share: torch.Tensor) -> torch.Tensor | None:
        """Gather shares `whole[rank::world_size]` into `whole`, on the CPU of rank 0 alone."""
        share = share.detach().cpu().contiguous()
        if self.world_size == 1:
            return share.clone()
        shares = [torch.empty_like(share) for _ in range(self.world_size)] if self.is_main else None
        distributed.gather(share, shares, dst=0, group=self.control)
        return torch.stack(shares, dim=1).flatten(0, 1) if shares else None

    def run_and_share_errors(self, work: Callable[[], T]) -> T:
        """Do work that may find a user error, and fail on all processes if it fails on one.

        Raises:
            SharedUserError: the error of the lowest rank that has one, on every process.
        """
        result, problem = None, None
        try:
            result = work()
        except UserError as error:
            problem = str(error)
        found = [text for text in self.gather(problem) if text is not None]
        if found:
            raise SharedUserError(found[0])
        return result  # type: ignore[return-value]

    def from_main(self, work: Callable[[], T]) -> T:
        """Do work on rank 0 alone and give every process its result.

        Raises:
            SharedUserError: the work's user error, on every process.
        """
        result = self.run_and_share_errors(lambda: work() if self.is_main else None)
        if self.world_size > 1:
            box = [result]
            distributed.broadcast_object_list(box, src=0, group=self.control)
            result = box[0]
        return result  # type: ignore[return-value]


@contextmanager
def joined(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Tensors of one type as one, whose values they have at the end of the block."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    yield flat
    for tensor, values in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


def init(
    device_name: str, rank: int, world_size: int, local_rank: int, meeting: str
) -> DistributedContext:
    """Meet the other processes.

    Args:
        meeting: `file://PATH` of a file that no other processes meet at; empty under torchrun,
            where the environment says where to meet.

    Raises:
        UserError: the device is missing or of no use, or another process's.
    """
    device = choose_device(device_name, local_rank)
    take_device(device)
    if world_size == 1:
        return DistributedContext(rank, world_size, device)
    if device.type == "mps":
        raise UserError("several processes need CUDA or the CPU; MPS has one device")
    backend = "nccl" if device.type == "cuda" else "gloo"
    for name in FORK_SAFE:
        os.environ.setdefault(name, "1")
    # Python's handlers would only be called once all are there; nothing is to be saved yet.
    with handling(dict.fromkeys(STOP_SIGNALS, signal.SIG_DFL)):
        store = None if meeting else store_of_attempt(rank, world_size)
        distributed.init_process_group(
            backend,
            init_method=meeting or None,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=TIMEOUT,
        )
        control = distributed.new_group(backend="gloo", timeout=TIMEOUT)
    context = DistributedContext(rank, world_size, device, control)
    if device.type == "cuda":
        require_own_gpus(context.gather(gpu_identity(device)))
    here, own = machine_identity(), allowed_cores()
    local = [cores for machine, cores in context.gather((here, own)) if machine == here]
    return replace(context, local_processes=len(local), cores=share_of_cores(own, local))


def lost_peer(error: BaseException) -> bool:
    """Whether talking to the other processes has failed since one of them is gone."""
    return isinstance(error, RuntimeError) and GONE.search(str(error)) is not None


def destroy() -> None:
    """End the process group, if there is one."""
    if distributed.is_available() and distributed.is_initialized():
        # torch 2.6 destroys the group under Python's lock, and waits for ever for a thread of
        # gloo's that wants the lock to let go of its last tensor. Asleep, this one lends it.
        time.sleep(0.1)
        with suppress(RuntimeError):  # a peer may be gone already
            distributed.destroy_process_group()
