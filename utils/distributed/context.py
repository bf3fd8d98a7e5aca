"""The ranks of a command: who this one is, what they exchange, and the device each computes on."""

import glob
import math
import os
import platform
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from utils.distributed.signals import STOP_SIGNALS, handling
from utils.errors import SharedUserError, UserError

T = TypeVar("T")
# A rank may wait for another that still evaluates or saves; one that died is noticed at once,
# because its connection closes.
TIMEOUT = timedelta(hours=24)
# Workers are forked after NCCL has begun: libibverbs keeps the memory of InfiniBand apart if told
# to, on large pages, too.
FORK_SAFE = ("IBV_FORK_SAFE", "RDMAV_FORK_SAFE", "RDMAV_HUGEPAGES_SAFE")
PROCESSES_A_CORE = 4  # on a CPU, at most
GPU_FILES = "/dev/nvidia[0-9]*"  # there where the system has a driver for a GPU
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def allowed_cores() -> frozenset[int]:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return frozenset(affinity(0)) if affinity else frozenset(range(os.cpu_count() or 1))


def cpu_quota() -> float:
    """Cores' worth of time that the cgroups of this process allow; the smallest on the way up.

    Version 2 keeps it in `cpu.max`, version 1 in two files below the controllers' names.
    """
    quotas = [math.inf]
    with suppress(OSError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root = CGROUPS / controllers
            group = root / path.lstrip("/")
            folders = group, *group.parents
            quotas += [quota_of(folder) for folder in folders if folder.is_relative_to(root)]
    return min(quotas)


def quota_of(group: Path) -> float:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # no such file; `max`
            quota, period = (int(n) for name in names for n in (group / name).read_text().split())
            if quota > 0:
                return quota / period
    return math.inf


def usable_cores() -> int:
    """The cores that affinity and quotas leave this process, at least 1."""
    return max(1, int(min(len(allowed_cores()), cpu_quota())))


@dataclass(frozen=True)
class DistributedContext:
    """This process among its peers."""

    rank: int  # 0 writes and prints
    world_size: int
    device: torch.device
    control: Any = None  # a gloo group for Python objects and flags, which never wait for a GPU
    local_processes: int = 1  # ranks on this machine
    cores: int = field(default_factory=usable_cores)  # that fall to this process

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.control)
        return values

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over the ranks, added in order and so the same everywhere."""
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    def max(self, value: int) -> int:
        """The largest of every rank's integer."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=self.control)
        return int(tensor)

    def barrier(self) -> None:
        self.gather(None)

    def average_(self, tensors: list[torch.Tensor]) -> None:
        """Average tensors over the ranks, in place, on the device."""
        if self.world_size > 1:
            with joined(tensors) as flat:
                distributed.all_reduce(flat)
                flat /= self.world_size

    def copy_from_main_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every rank the values of rank 0, in place, in one message for each type."""
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
        """Do work that may find a user error, and fail on all ranks if it fails on one."""
        result, error_text = None, None
        try:
            result = work()
        except UserError as error:
            error_text = str(error)
        if errors := [text for text in self.gather(error_text) if text is not None]:
            raise SharedUserError(errors[0])
        return result  # type: ignore[return-value]

    def from_main(self, work: Callable[[], T]) -> T:
        """Do work on rank 0 alone and give every rank its result."""
        result = self.run_and_share_errors(lambda: work() if self.is_main else None)
        return self.gather(result)[0]  # type: ignore[return-value]


@contextmanager
def joined(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Tensors of one type as one flat tensor, whose values are copied back at the end."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    yield flat
    for tensor, values in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


def init(
    device_name: str, rank: int, world_size: int, local_rank: int, init_method: str
) -> DistributedContext:
    """Join the process group of all ranks; without `init_method` at the address of torchrun."""
    device = choose_device(device_name, local_rank)
    claim_device(device)
    if world_size == 1:
        return DistributedContext(rank, world_size, device)
    if device.type == "mps":
        raise UserError("several processes need CUDA or the CPU; MPS has one device")
    backend = "nccl" if device.type == "cuda" else "gloo"
    for name in FORK_SAFE:
        os.environ.setdefault(name, "1")
    # Python's handlers would only be called once all ranks are there; nothing is to be saved yet.
    with handling(STOP_SIGNALS, signal.SIG_DFL):
        distributed.init_process_group(
            backend, init_method or None, TIMEOUT, rank=rank, world_size=world_size
        )
        control = distributed.new_group(backend="gloo", timeout=TIMEOUT)
    context = DistributedContext(rank, world_size, device, control)
    if device.type == "cuda":
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        require_own_gpus(context.gather(uuid))
    boot = BOOT_ID.read_text() if BOOT_ID.exists() else ""  # hosts may have the same name
    host, cores = f"{platform.node()} {boot}", allowed_cores()
    local = [its_cores for its_host, its_cores in context.gather((host, cores)) if its_host == host]
    return replace(context, local_processes=len(local), cores=share_of_cores(cores, local))


def destroy() -> None:
    """End the process group, if there is one."""
    if distributed.is_available() and distributed.is_initialized():
        # torch 2.6 destroys the group under Python's lock, and waits for ever for a thread of
        # gloo's that wants the lock to let go of its last tensor. Asleep, this one lends it.
        time.sleep(0.1)
        with suppress(RuntimeError):  # a peer may be gone already
            distributed.destroy_process_group()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device` names; `auto` is CUDA, else MPS, else the CPU.

    `cuda` is the GPU number `local_rank`, or the only visible one, as where a launcher shows each
    rank its own.
    """
    name = automatic() if name == "auto" else name
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"--device {name}: unknown; use auto, cpu, cuda, cuda:1 or mps")
    device = torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and device.index is None:
        if 1 < count <= local_rank:
            raise UserError(
                f"process {local_rank} of this machine has no GPU of its own, there are {count};"
                " start as many processes as GPUs"
            )
        device = torch.device("cuda", local_rank if count > 1 else 0)
    no_mps = device.type == "mps" and not torch.backends.mps.is_available()
    if no_mps or (device.type == "cuda" and (device.index or 0) >= count):
        raise UserError(f"--device {name}: there is none here; use --device auto")
    return device


def automatic() -> str:
    """`cuda`, `mps` or `cpu`; with a broken driver none, for the CPU would be far too slow."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return "cuda"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.version.cuda and not hidden and glob.glob(GPU_FILES):
        reasons = [" ".join(str(warning.message).partition(" (")[0].split()) for warning in caught]
        reason = f" ({reasons[0]})" if reasons else ""
        raise UserError(
            f"torch cannot use the GPU of this machine{reason}; update its driver or install a"
            " torch that fits it, or give --device cpu"
        )
    return "mps" if torch.backends.mps.is_available() else "cpu"


def claim_device(device: torch.device) -> None:
    """Make a GPU this process's, and compute something on it."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.set_device(device)
        (torch.ones(1, device=device) + 1).item()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{device} cannot compute ({reason}); install a torch that is built for it, end what"
            " else uses it, or give --device cpu"
        ) from error


def number_of_processes(nproc: int, name: str) -> int:
    """`--nproc`, or one per visible GPU where CUDA is used, or one."""
    device_type = choose_device(name).type
    all_gpus = device_type == "cuda" and name in ("auto", "cuda")
    available = torch.cuda.device_count() if all_gpus else 1
    if device_type != "cpu" and nproc > available:
        raise UserError(f"--nproc {nproc}: only {available} {device_type} device here; take fewer")
    most = PROCESSES_A_CORE * usable_cores()
    if nproc > max(most, available):  # hundreds of them would take the machine down
        raise UserError(f"--nproc {nproc}: take at most {most}, best no more than cores")
    return nproc or available


def require_own_gpus(uuids: Sequence[str]) -> None:
    """Refuse two ranks on one GPU, on which NCCL would fail; `uuids` of GPUs by rank."""
    for rank, uuid in enumerate(uuids):
        if (first := uuids.index(uuid)) < rank:
            raise SharedUserError(
                f"processes {first} and {rank} have the same GPU; start one process a GPU, with"
                " --device cuda"
            )


def share_of_cores(own: frozenset[int], of_all: Sequence[frozenset[int]]) -> int:
    """The cores that fall to one rank, of `own` and those of each rank of this machine."""
    # A launcher gives all ranks the same cores, as torchrun does, or each its own, as srun may.
    shares = sum(1 / sum(core in cores for cores in of_all) for core in own)
    return max(1, int(min(shares, cpu_quota() / len(of_all)) + 1e-6))
