"""9. Several processes: NCCL, gloo on one GPU, sync_bn, compiled; a killed process ends all."""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from tests.ddp_steps import train_two_steps
from tests.gpu_acceptance.checks import Check, at_most, contains, equal, skip
from tests.gpu_acceptance.setting import Setting
from tests.processes import children_of, nursery
from utils.config.merge import merge
from utils.config.readers import REDUCE_OVERHEAD
from utils.config.schema import Config
from utils.distributed.context import DistributedContext, lost_peer

MINUTE = timedelta(seconds=60)
TINY = merge({"TRAIN": {"lr": 1e-3, "arch": "resnet18"}})
LOST = 3  # exit status of a process that has noticed that another one is gone


def checks(setting: Setting) -> Iterator[Check]:
    """Each against one process without a group; then a kill."""
    backend = "nccl" if setting.cuda else "gloo"
    arch = setting.choose("resnet50", "resnet50", "resnet18")
    device = torch.device(setting.device.type, 0) if setting.cuda else setting.device
    config = merge({"TRAIN": {"lr": 1e-3, "arch": arch}})
    alone = train_two_steps(DistributedContext(0, 1, device), config)
    yield from compare(f"{backend}, one process", members(setting, 1, backend, config), alone)
    yield from compare("gloo, two on one device", members(setting, 2, "gloo", config), alone)
    if setting.cuda:
        for mode in setting.choose((True, REDUCE_OVERHEAD), (True,), ()):
            compiled = merge({"TRAIN": {"lr": 1e-3, "arch": arch, "compile": mode}})
            found = members(setting, 2, "gloo", compiled)
            yield from compare(f"gloo, two, compile {mode}", found, alone)
            yield at_most(f"compilations of DDP, {mode}", found[0]["compilations"], 3)
    if torch.cuda.device_count() > 1:
        yield from compare("NCCL, two GPUs", members(setting, 2, "nccl", config, apart=True), alone)
        yield from several_gpus(setting)
    else:
        yield skip("NCCL on two GPUs, sync_bn", "one GPU at most here")
    yield from killed(setting)


def compare(name: str, found: list[dict[str, Any]], alone: dict[str, Any]) -> Iterator[Check]:
    """The weights of a single process, no warnings, gradients that lie as their parameters."""
    largest = max(
        float(np.abs(one["weights"][key] - value).max())
        for one in found
        for key, value in alone["weights"].items()
    )
    yield at_most(f"{name}: weights, away from one process alone", largest, 1e-4)
    said = [line for one in found for line in one["said"].splitlines() if "warn" in line.lower()]
    yield equal(f"{name}: warnings", said, [])
    strides = [key for one in found for key in one["other strides"]]
    yield equal(f"{name}: gradients of other strides", strides, [])


def members(
    setting: Setting, count: int, backend: str, config: Config, apart: bool = False
) -> list[dict[str, Any]]:
    """`train_two_steps` in each of so many processes, on one device or each on its own."""
    with tempfile.TemporaryDirectory(dir=setting.folder) as place:
        processes = start(setting, member, place, count, backend, config, apart)
        for process in processes:
            process.join(240)
            process.kill()
            process.join()
        statuses = [process.exitcode for process in processes]
        assert statuses == [0] * count, f"processes ended with {statuses}"
        return [pickle.loads(Path(place, str(rank)).read_bytes()) for rank in range(count)]


def start(
    setting: Setting,
    work: Callable[..., None],
    place: str,
    count: int,
    backend: str,
    config: Config,
    apart: bool = False,
) -> list[Any]:
    """Processes that work, on one device or each on its own; they meet in a folder."""
    processes = []
    for rank in range(count):
        where = torch.device("cuda", rank if apart else 0) if setting.cuda else setting.device
        processes.append(
            nursery().Process(target=work, args=(place, rank, count, backend, where, config))
        )
        processes[-1].start()
    return processes


def meet(
    place: str, rank: int, count: int, backend: str, where: torch.device
) -> DistributedContext:
    """The process group, on whatever devices: the suite itself refuses two on one GPU."""
    torch.set_num_threads(1)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    distributed.init_process_group(
        backend,
        init_method=f"file://{place}/meeting",
        rank=rank,
        world_size=count,
        timeout=MINUTE,
    )
    control = distributed.new_group(backend="gloo", timeout=MINUTE)
    return DistributedContext(rank, count, where, control)


def member(
    place: str, rank: int, count: int, backend: str, where: torch.device, config: Config
) -> None:
    """One process."""
    context = meet(place, rank, count, backend, where)
    found = train_two_steps(context, config)
    Path(place, str(rank)).write_bytes(pickle.dumps(found))
    context.barrier()
    distributed.destroy_process_group()


def trains_for_ever(
    place: str, rank: int, count: int, backend: str, where: torch.device, config: Config
) -> None:
    """A process that ends with `LOST` where another one is gone."""
    context = meet(place, rank, count, backend, where)
    while True:
        try:
            train_two_steps(context, config)
        except RuntimeError as error:
            os._exit(LOST if lost_peer(error) else 1)
        Path(place, f"{rank} trains").touch()


def killed(setting: Setting) -> Iterator[Check]:
    """kill -9 of one of two processes that train over gloo."""
    with tempfile.TemporaryDirectory(dir=setting.folder) as place:
        processes = start(setting, trains_for_ever, place, 2, "gloo", TINY)
        deadline = time.monotonic() + 120
        while not all(Path(place, f"{rank} trains").exists() for rank in range(2)):
            assert time.monotonic() < deadline, "two processes do not come to train"
            time.sleep(0.05)
        processes[1].kill()
        killed_at = time.monotonic()
        processes[0].join(60)
        seconds = time.monotonic() - killed_at
        processes[0].kill()
        processes[0].join()
    yield at_most("seconds until the other process has ended", seconds, 30)
    yield equal("its exit status: it has lost a peer", processes[0].exitcode, LOST)


def several_gpus(setting: Setting) -> Iterator[Check]:
    """The command on two GPUs, with sync_bn; then one of its processes is killed."""
    training = setting.training("--nproc", 2, TRAIN__sync_bn=True)
    done = setting.run("main_free.py", *training)
    yield equal("main_free.py --nproc 2 with sync_bn", (done.status, done.err), (0, ""))
    words = setting.training("--nproc", 2, "--overwrite", TRAIN__epochs=4000)
    with setting.start("main_free.py", *words, cwd=setting.folder) as running:
        running.saw(r"epoch 1/\d+ \[2/")
        os.kill(children_of(running.pid)[-1], signal.SIGKILL)
        killed_at = time.monotonic()
        done = running.end()
    yield at_most("seconds until the command has ended", time.monotonic() - killed_at, 30)
    yield contains("what it says", done.err, "was killed by SIGKILL")
