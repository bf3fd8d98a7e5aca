"""Which device a process computes on, and whether it can: one line with the fix where it cannot."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence

import torch

from utils.distributed.machine import allowed_cores
from utils.errors import SharedUserError, UserError

PROCESSES_A_CORE = 4  # of a CPU, at most: hundreds of them would take the machine down
GPU_FILES = "/dev/nvidia[0-9]*"  # there where the system has a driver for a GPU


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device` names; `auto` is CUDA, else MPS, else the CPU.

    Args:
        local_rank: this process's number on this machine; `cuda` is the GPU of that number, or
            the only one that it sees, as where a launcher shows each process its own.

    Raises:
        UserError: there is no such device here, or auto finds a GPU that torch cannot use.
    """
    name = automatic() if name == "auto" else name
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: unknown; use auto, cpu, cuda, cuda:1 or mps")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = {"cpu": True, "cuda": count > 0, "mps": torch.backends.mps.is_available()}[device.type]
    if device.type == "cuda" and device.index is None:
        if 1 < count <= local_rank:
            raise UserError(
                f"process {local_rank} of this machine has no GPU of its own, there are {count};"
                " start as many processes as GPUs"
            )
        device = torch.device("cuda", local_rank if count > 1 else 0)
    if not here or (device.type == "cuda" and device.index >= count):
        raise UserError(f"--device {name}: there is none here; use --device auto")
    return device


def automatic() -> str:
    """`cuda`, `mps` or `cpu`.

    Raises:
        UserError: a broken driver, with which the CPU would be a hundred times slower than meant.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return "cuda"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.version.cuda and not hidden and glob.glob(GPU_FILES):
        reasons = [str(warning.message).partition(" (")[0] for warning in caught]
        reason = f" ({' '.join(reasons[0].split())})" if reasons else ""
        raise UserError(
            f"torch cannot use the GPU of this machine{reason}; update its driver or install a"
            " torch that fits it, or give --device cpu"
        )
    return "mps" if torch.backends.mps.is_available() else "cpu"


def take_device(device: torch.device) -> None:
    """Make a GPU this process's, and compute something on it.

    Raises:
        UserError: this build of torch has no kernels for it, or others keep it to themselves.
    """
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
    """`--nproc`, or one per visible GPU where CUDA is used, or one.

    Raises:
        UserError: more processes than GPUs, or than the CPU's cores can bear.
    """
    kind = choose_device(name).type
    several = kind == "cuda" and name in ("auto", "cuda")
    available = torch.cuda.device_count() if several else 1
    if kind != "cpu" and nproc > available:
        raise UserError(f"--nproc {nproc}: only {available} {kind} device here; take fewer")
    cores = len(allowed_cores())
    if kind == "cpu" and nproc > PROCESSES_A_CORE * cores:
        raise UserError(
            f"--nproc {nproc}: this machine lets {cores} cores be used; take at most"
            f" {PROCESSES_A_CORE * cores} processes, best no more than cores"
        )
    return nproc or available


def gpu_identity(device: torch.device) -> str:
    """What identifies a GPU, on any machine and under any number."""
    return str(torch.cuda.get_device_properties(device).uuid)


def require_own_gpus(identities: Sequence[str]) -> None:
    """Of all processes, by rank.

    Raises:
        SharedUserError: two have the same GPU, on which NCCL would fail.
    """
    for rank, identity in enumerate(identities):
        if (first := identities.index(identity)) < rank:
            raise SharedUserError(
                f"processes {first} and {rank} have the same GPU; start no more than one process"
                " a GPU, and give --device cuda without a number"
            )
