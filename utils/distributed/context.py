"""Processes: who this one is, what they say to each other, and starting one on every GPU."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from utils.distributed.rendezvous import store_of_attempt
from utils.distributed.signals import STOP_SIGNALS, handling
from utils.errors import SharedUserError, UserError

T = TypeVar("T")
# A process may wait for another that still evaluates or saves; one that died is noticed at once,
# because its connection closes.
TIMEOUT = timedelta(hours=24)
# What gloo and NCCL say when a process that they talk to is gone.
GONE = re.compile(r"(closed|reset) by peer|broken pipe|remote process exited", re.IGNORECASE)


@dataclass(frozen=True)
class DistributedContext:
    """This process among its peers.

    Attributes:
        rank: its number, 0 for the one that writes and prints.
        world_size: how many there are.
        device: where it computes.
        control: a gloo group for Python objects and flags, so that talking to each other never
            waits for a GPU; None alone.
    """

    rank: int
    world_size: int
    device: torch.device
    control: Any = None

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
        """Wait for all processes."""
        self.gather(None)

    def average_(self, tensors: list[torch.Tensor]) -> None:
        """Average tensors over the processes, in place, on the device."""
        if self.world_size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(flat)
            flat /= self.world_size
            for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def copy_from_main_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process rank 0's values, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

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


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device` names; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: unknown; use auto, cpu, cuda, cuda:1 or mps")
    here = {"cpu": True, "cuda": cuda, "mps": mps}[device.type]
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    if not here or (device.type == "cuda" and device.index >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: there is none here; use --device auto")
    return device


def number_of_processes(nproc: int, device: str) -> int:
    """`--nproc`, or one per visible GPU where CUDA is used, or one.

    Raises:
        UserError: more processes than GPUs.
    """
    kind = choose_device(device)
    many = kind.type == "cuda" and device in ("auto", "cuda")
    available = torch.cuda.device_count() if many else 1
    if kind.type != "cpu" and nproc > available:
        raise UserError(f"--nproc {nproc}: only {available} {kind.type} device here; take fewer")
    return nproc or available


def under_torchrun() -> bool:
    """Whether a launcher has set this process's rank in its environment."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def init(
    device_name: str, rank: int, world_size: int, local_rank: int, meeting: str
) -> DistributedContext:
    """Meet the other processes.

    Args:
        meeting: `file://PATH` of a file that no other processes meet at; empty under torchrun,
            where the environment says where to meet.
    """
    device = choose_device(device_name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        return DistributedContext(rank, world_size, device)
    if device.type == "mps":
        raise UserError("several processes need CUDA or the CPU; MPS has one device")
    backend = "nccl" if device.type == "cuda" else "gloo"
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
    return DistributedContext(rank, world_size, device, control)


def check_launcher() -> None:
    """What torchrun (or another launcher) has put into the environment must be complete.

    Raises:
        UserError: names the variable that is missing or wrong.
    """
    needed = ["RANK", "WORLD_SIZE"]
    if os.environ["WORLD_SIZE"] != "1":
        needed += ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]
    for name in needed:
        value = os.environ.get(name, "")
        if not value or (name != "MASTER_ADDR" and not value.isdecimal()):
            raise UserError(
                f"the environment has RANK and WORLD_SIZE, and {name} is {value or 'missing'!r}:"
                " start by torchrun, or unset them for processes that start themselves"
            )


def init_from_environment(device_name: str) -> DistributedContext:
    """Meet the processes that torchrun (or another launcher) has started."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return init(device_name, rank, world_size, int(os.environ.get("LOCAL_RANK", 0)), "")


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
