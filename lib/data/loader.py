"""Loaders: batches read ahead by worker processes, the same for any number of them."""

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

from lib.data.datasets import Batch, ImageBatches, PipedBatch
from lib.data.sampler import DistributedBatchSampler, EvaluationSampler
from utils.distributed.context import DistributedContext
from utils.distributed.signals import ignore_signals
from utils.errors import UserError

PREFETCH = 4  # batches that each worker is ahead
MOST_WORKERS = 16  # of one process under DATA.workers auto; each holds PREFETCH batches in memory
SHARED_MEMORY = "/dev/shm"
SECONDS_BETWEEN_CHECKS = 1  # of requests and of the workers, while a batch is waited for
WhileWaiting = Callable[[], Any]


class Loader:
    """Batches of a dataset in a sampler's order, whose workers live as long as it does."""

    waiting: "Loader | None" = None  # for a batch, right now

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.workers: list[BaseProcess] = []
        self.iterator: Any = None  # torch's, which lives as long as the workers
        self.seconds_waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, while_waiting: WhileWaiting = lambda: False) -> Iterator[Batch]:
        """The sampler's batches; they end when `while_waiting`, called every second, is true."""
        self.start()
        while True:
            started = time.monotonic()
            try:
                batch = self.next_batch(while_waiting)
            except BaseException:
                self.kill_workers()
                raise
            finally:
                self.seconds_waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def start(self) -> None:
        """Begin a pass: start the workers the first time, and later tell them to continue."""
        if self.workers:
            self.iterator._timeout = 0  # however long one takes that was swapped out meanwhile
        try:
            self.iterator = iter(self.loader)
        except RuntimeError as error:
            self.raise_if_killed(error)
            raise
        if self.loader.num_workers:
            self.workers = self.iterator._workers
            self.iterator._timeout = SECONDS_BETWEEN_CHECKS
            if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
                # torch's handler raises, wherever the main thread is, when a worker dies.
                signal.signal(signal.SIGCHLD, Loader.note_dead_worker)

    def next_batch(self, while_waiting: WhileWaiting) -> Batch | None:
        """The next batch; None at the end, or when it is no longer waited for."""
        while True:
            Loader.waiting = self
            try:
                Loader.note_dead_worker()
                return next(self.iterator, None)
            except RuntimeError as error:
                self.raise_if_killed(error)
                if not str(error).startswith("DataLoader timed out"):
                    raise
            finally:
                Loader.waiting = None
            if while_waiting():
                self.kill_workers()
                return None

    @staticmethod
    def note_dead_worker(*_: object) -> None:
        """Raise while a batch is waited for, the rest of which a dead worker will never send."""
        loader = Loader.waiting
        if loader is not None and any(worker.exitcode for worker in loader.workers):
            raise RuntimeError("DataLoader worker died")

    def raise_if_killed(self, error: RuntimeError) -> None:
        if str(error).startswith("DataLoader worker"):
            status = next((worker.exitcode for worker in self.workers if worker.exitcode), 0) or 0
            name = f"killed by {signal.Signals(-status).name}" if status < 0 else "ended"
            raise UserError(
                f"a worker that reads images was {name}; if the memory was too small, set"
                " fewer DATA.workers or a smaller batch, and give the same command again"
            ) from error

    def kill_workers(self) -> None:
        """End the workers, which may ignore any other signal, or wait for a disk."""
        for worker in self.workers:
            worker.kill()


def make_loader(
    dataset: ImageBatches,
    batches: DistributedBatchSampler | EvaluationSampler,
    workers: int,
    device: torch.device,
    local_processes: int = 1,
) -> Loader:
    """A loader of `Batch`es: through shared memory and pinned for CUDA, through pipes elsewhere."""
    # Of its own: each pass draws a seed for workers, and an interrupted training has more passes.
    generator = torch.Generator()
    ahead = (PREFETCH * workers + 1) * batches.largest * 3 * dataset.size**2  # bytes
    cuda = device.type == "cuda"
    shared = not workers or (cuda and ahead * local_processes < free_shared_memory())
    return Loader(
        DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=as_it_is if shared else piped,
            pin_memory=cuda and workers > 0,
            worker_init_fn=begin_worker,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            generator=generator,
        )
    )


def begin_worker(number: int) -> None:
    """Leave signals to the process that is read for, and end with it, even when it is killed."""
    ignore_signals(number)
    parent = os.getppid()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_CHECKS)
        os._exit(1)  # the queue's own thread may wait for a lock that nobody gives back

    threading.Thread(target=end_with_parent, daemon=True).start()


def as_it_is(batch: Any) -> Batch:  # the datasets make whole batches
    return batch


def piped(batch: Any) -> Batch:
    return PipedBatch(*batch)


def free_shared_memory() -> float:
    """Bytes of the shared memory that may be taken; a tenth of it stays free."""
    if not os.path.isdir(SHARED_MEMORY):
        return math.inf
    return 0.9 * shutil.disk_usage(SHARED_MEMORY).free


def share_of_workers(workers: int | str, context: DistributedContext) -> int:
    """This process's part of `DATA.workers`; never more than its cores, for they would compete."""
    wanted = MOST_WORKERS if workers == "auto" else int(workers) // context.local_processes
    return max(1, min(wanted, context.cores)) if workers else 0
