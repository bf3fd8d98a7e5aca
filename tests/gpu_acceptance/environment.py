"""1. The machine: what it is, and whether torch was built for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from lib.algorithm.precision import full_precision, tf32_backends
from tests.gpu_acceptance.checks import Check, at_most, holds, note
from tests.gpu_acceptance.setting import Setting, difference, pixels


def checks(setting: Setting) -> Iterator[Check]:
    """Versions, cores, shared memory, architectures, one convolution."""
    yield note("torch", torch.__version__)
    if setting.cuda:
        yield from gpu(setting.device)
    yield note("TF32, products and convolutions", [b.allow_tf32 for b in tf32_backends()])
    if hasattr(os, "sched_getaffinity"):
        yield note("cores by affinity", len(os.sched_getaffinity(0)))
    if os.path.isdir("/dev/shm"):
        yield note("free in /dev/shm, GiB", round(shutil.disk_usage("/dev/shm").free / 2**30, 2))
    x, weight = pixels(4, 64), pixels(8, 7, seed=1)
    with full_precision():
        found = F.conv2d(x.to(setting.device), weight.to(setting.device))
    yield at_most("a convolution, relative error", difference(found, F.conv2d(x, weight)), 1e-5)


def gpu(device: torch.device) -> Iterator[Check]:
    """The GPU, what drives it, and whether this build of torch has kernels for it."""
    properties = torch.cuda.get_device_properties(device)
    yield note("GPU", f"{torch.cuda.device_count()} x {properties.name}")
    yield note("memory, GiB", round(properties.total_memory / 2**30, 1))
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(query[0]):
        said = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout
        yield note("driver", said.strip())
    yield note("CUDA", torch.version.cuda)
    yield note("cuDNN", torch.backends.cudnn.version())
    yield note("NCCL", torch.cuda.nccl.version())
    built, own = torch.cuda.get_arch_list(), torch.cuda.get_device_capability(device)
    yield holds("architectures of this build", " ".join(built), runs_on(built, own), f"for {own}")


def runs_on(built: list[str], own: tuple[int, int]) -> bool:
    """Whether kernels of `sm_90` and the like run on a GPU of some compute capability.

    Binary code runs on its own generation from its minor version on, `compute_` code on all later
    ones.
    """
    for name in built:
        kind, _, digits = name.partition("_")
        number = digits.rstrip("af")
        capability = int(number[:-1]), int(number[-1])
        same = capability[0] == own[0] or kind == "compute"
        if same and capability <= own and (digits == number or capability == own):
            return True
    return False
