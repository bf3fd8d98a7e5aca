"""Loaders: batches read ahead by other processes, the same for any number of them."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

from lib.data.datasets import Batch, BatchDataset
from lib.data.samplers import Batches
from lib.data.shared_ring import Numbered, PipeDataset, RingDataset
from utils.distributed.context import DistributedContext
from utils.errors import UserError

PREFETCH = 4  # batches that each reader is ahead
MOST_WORKERS = 16  # of one process under DATA.workers auto; each holds PREFETCH batches in memory
SHARED_MEMORY = "/dev/shm"
SECONDS_BETWEEN_CHECKS = 1  # of requests and of the readers, while a batch is waited for
ENLARGE = "enlarge it, as by docker run --shm-size=8g"
WhileWaiting = Callable[[], Any]


class GaveUp(Exception):
    """A batch is no longer waited for."""


class Loader:
    """Batches of a dataset in a sampler's order, whose readers live as long as it does.

    Args:
        loader: gives what the readers send.
        received: makes a batch of that.

    Attributes:
        seconds_waited: for batches, so far.
    """

    def __init__(self, loader: DataLoader, received: Callable[[Any], Batch]) -> None:
        self.loader = loader
        self.received = received
        self.readers: list[BaseProcess] = []
        self.iterator: Any = None  # torch's, which lives as long as the readers
        self.seconds_waited = 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, while_waiting: WhileWaiting = lambda: False) -> Iterator[Batch]:
        """The sampler's batches.

        Args:
            while_waiting: called every second while there is no batch, as when a disk does not
                answer; the batches end when it returns True or raises, and the readers with them.

        Raises:
            UserError: a reader was killed.
        """
        iterator = self.start()
        while True:
            started = time.monotonic()
            try:
                sent = self.next_of(iterator, while_waiting)
            except StopIteration:
                return
            except GaveUp:
                self.kill_readers()
                return
            except BaseException:
                self.kill_readers()
                raise
            finally:
                self.seconds_waited += time.monotonic() - started
            yield self.received(sent)

    def start(self) -> Iterator[Any]:
        """What the readers send, who are started the first time, and later told to go on.

        Raises:
            UserError: a reader was killed since the last pass.
        """
        others = multiprocessing.active_children()
        if self.readers:
            self.iterator._timeout = 0  # however long one takes that was swapped out meanwhile
        try:
            self.iterator = iterator = iter(self.loader)
        except RuntimeError as error:
            self.raise_if_killed(error)
            raise
        self.readers += [p for p in multiprocessing.active_children() if p not in others]
        if self.readers and threading.current_thread() is threading.main_thread():
            # torch's handler raises, wherever the main thread is, when a reader dies.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self.readers:
            iterator._timeout = SECONDS_BETWEEN_CHECKS
        return iterator

    def next_of(self, iterator: Iterator[Any], while_waiting: WhileWaiting) -> Any:
        """The next of what the readers send."""
        while True:
            try:
                return next(iterator)
            except RuntimeError as error:
                self.raise_if_killed(error)
                if not str(error).startswith("DataLoader timed out"):
                    raise
            if while_waiting():
                raise GaveUp

    def raise_if_killed(self, error: RuntimeError) -> None:
        if str(error).startswith("DataLoader worker"):
            raise UserError(what_ended(self.readers)) from error

    def kill_readers(self) -> None:
        """End the readers, which may ignore any other signal, or wait for a disk."""
        for reader in self.readers:
            reader.kill()


def what_ended(readers: list[BaseProcess]) -> str:
    """What to tell of readers that have ended, and what helps."""
    status = next((reader.exitcode for reader in readers if reader.exitcode), 0) or 0
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended, status {status}"
    if -status == signal.SIGBUS:
        fix = f"{SHARED_MEMORY} is full: {ENLARGE}, or set fewer DATA.workers"
    else:
        fix = "if the memory was too small, set fewer DATA.workers or a smaller batch"
    return f"a process that reads images was {how}; {fix}, and give the same command again"


def collate(batch: Any) -> Any:
    """Nothing to collate: the datasets make whole batches."""
    return batch


def ignore_signals(_: int) -> None:
    """A reader leaves Ctrl-C and SLURM's warning to the main process, which ends it."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def make_loader(
    dataset: BatchDataset,
    batches: Batches,
    workers: int,
    device: torch.device,
    worker_init: Callable[[int], None] = ignore_signals,
    warn: Callable[[str], Any] = warnings.warn,
    local_processes: int = 1,
) -> Loader:
    """A loader of `Batch`es, whose pixels travel as suits device and memory.

    For CUDA each batch is pinned, by a thread; elsewhere a ring of shared memory takes the pixels,
    or pipes where there is no room for it.

    Args:
        dataset: reads a batch.
        batches: which images are read together.
        workers: reading processes of this process; 0 reads in line.
        device: where the batches go.
        worker_init: called in each reading process.
        warn: told where there is little shared memory.
        local_processes: of this machine, which share its memory.
    """
    # Of its own: each pass draws a seed for readers, and an interrupted training has more passes.
    generator = torch.Generator()
    if not workers:
        plain = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, generator=generator)
        return Loader(plain, collate)
    room = free_shared_memory() / local_processes
    ahead = batches_ahead(batches.largest * 3 * dataset.size**2, workers, room, warn)

    readers = partial(
        DataLoader,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=worker_init,
        persistent_workers=True,
        prefetch_factor=max(1, ahead),
        generator=generator,
    )
    if not ahead:
        pipe = PipeDataset(dataset)
        return Loader(readers(pipe, batch_sampler=batches), pipe.received)
    if device.type == "cuda":
        return Loader(readers(dataset, batch_sampler=batches, pin_memory=True), collate)
    slots = max(1, min(ahead * workers + 1, len(batches)))
    ring = RingDataset(dataset, slots, batches.largest)
    return Loader(readers(ring, batch_sampler=Numbered(batches, slots)), ring.received)


def batches_ahead(size: int, workers: int, room: float, warn: Callable[[str], Any]) -> int:
    """How many batches of `size` bytes each reader may be ahead in `room` bytes; 0: none fits."""
    fits = (ahead for ahead in (PREFETCH, 2, 1) if (ahead * workers + 1) * size <= room)
    ahead = next(fits, 0)
    if ahead < PREFETCH:
        wanted = (PREFETCH * workers + 1) * size / 2**20
        less = f"each reader is {ahead} ahead" if ahead else "batches go through pipes"
        warn(
            f"{SHARED_MEMORY} has room for {room / 2**20:.0f} MB of images here and {wanted:.0f} MB"
            f" are wanted: {less}, which is slower; {ENLARGE}"
        )
    return ahead


def free_shared_memory() -> float:
    """Bytes of the shared memory that may be taken; a tenth of it stays free."""
    if not os.path.isdir(SHARED_MEMORY):
        return math.inf
    return 0.9 * shutil.disk_usage(SHARED_MEMORY).free


def share_of_workers(workers: int | str, context: DistributedContext) -> int:
    """Reading processes of this process, of those of `DATA.workers` on this machine.

    Args:
        workers: `auto` is one for every core that falls to this process; no number goes beyond
            that, for they would only get in each other's way. 0 is none, any other at least one.
        context: this process among its peers.
    """
    wanted = MOST_WORKERS if workers == "auto" else int(workers) // context.local_processes
    return max(1, min(wanted, context.cores)) if workers else 0
