"""Loaders: batches read ahead by worker processes, the same for any number, and their device."""

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from lib.algorithm.pgd_attack import DeviceBatch
from lib.data.datasets import Batch, DistributedBatchSampler, ImageBatches, Keys, PipedBatch
from utils.distributed.context import DistributedContext
from utils.distributed.signals import ignore_signals
from utils.errors import UserError

PREFETCH = 4  # batches that each worker is ahead
MOST_WORKERS = 16  # of one process under DATA.workers auto; each holds PREFETCH batches in memory
SHARED_MEMORY = "/dev/shm"
SECONDS_BETWEEN_CHECKS = 1  # of requests and of the workers, while a batch is waited for
WhileWaiting = Callable[[], Any]


class Loader:
    """Batches of a dataset in a given order, read by workers that live as long as it does."""

    waiting: "Loader | None" = None  # for a batch, right now

    def __init__(
        self,
        dataset: ImageBatches,
        order: DistributedBatchSampler | Sequence[Keys],
        workers: int,
        device: torch.device,
        local_processes: int = 1,
    ) -> None:
        self.dataset = dataset
        self.workers: list[BaseProcess] = []
        self.iterator: Any = None  # torch's, which lives as long as the workers
        self.seconds_waited = 0.0
        # Batches come through shared memory and pinned for CUDA, through pipes elsewhere.
        cuda = device.type == "cuda"
        largest = max((len(positions) for _, positions in order), default=0)
        ahead = (PREFETCH * workers + 1) * largest * 3 * dataset.size**2  # bytes
        shared = not workers or (cuda and ahead * local_processes < free_shared_memory())
        self.loader: DataLoader = DataLoader(
            dataset,
            batch_sampler=order,  # type: ignore[arg-type]  # any index goes to __getitems__
            num_workers=workers,
            collate_fn=as_it_is if shared else piped,
            pin_memory=cuda and workers > 0,
            worker_init_fn=begin_worker,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            # Of its own: each pass draws a seed for workers, and an interrupted training has more.
            generator=torch.Generator(),
        )

    def batches(self, while_waiting: WhileWaiting = lambda: False) -> Iterator[Batch]:
        """The batches in order; they end when `while_waiting`, called every second, is true."""
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
        if self.workers:  # torch would end them once more, in forked processes too, or wait for one
            self.iterator._shutdown = True


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


# On the device: copies beside the work, bytes as numbers in [0, 1].


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Send a batch as bytes; scale to [0, 1] there."""
    if batch.error is not None:
        raise UserError(batch.error)

    def send(tensor: torch.Tensor) -> torch.Tensor:
        # On MPS a copy that is not waited for can read what the host has overwritten since.
        return tensor.to(device, non_blocking=device.type == "cuda")

    # On MPS batch-norm's backward pass fails in channels_last.
    layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
    images = scaled(send(batch.pixels)).contiguous(memory_format=layout)
    return DeviceBatch(images, send(batch.labels), send(batch.indices))


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes as float32 in [0, 1]: the same bits on every device."""
    if pixels.device.type != "cpu":
        # CUDA divides by a number as it multiplies by its reciprocal: half of the 256 are others.
        return table_of_255ths(pixels.device)[pixels.int()]
    # NumPy does it in this thread alone. After a parallel loop of PyTorch's, OpenMP's threads wait
    # for the next one by spinning, for longer than a batch takes, on cores that the workers need.
    result = torch.empty_like(pixels, dtype=torch.float32)
    np.divide(pixels.numpy(), 255, out=result.numpy(), dtype=np.float32)
    return result


@lru_cache
def table_of_255ths(device: torch.device) -> torch.Tensor:
    """0/255 to 255/255, divided on the host."""
    return scaled(torch.arange(256, dtype=torch.uint8)).to(device)


@lru_cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device's copies."""
    return torch.cuda.Stream(device)


def on_device(
    loader: Loader, device: torch.device, while_waiting: WhileWaiting = lambda: False
) -> Iterator[DeviceBatch]:
    """The loader's batches on the device; on CUDA the next one is copied during the work."""
    batches = loader.batches(while_waiting)
    if device.type != "cuda":
        yield from (to_device(batch, device) for batch in batches)
        return
    stream = copy_stream(device)
    pending: tuple[DeviceBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = to_device(batch, device)
            done = stream.record_event()
        if pending is not None:
            yield arrived(*pending)
        pending = copied, done
    if pending is not None:
        yield arrived(*pending)


def arrived(batch: DeviceBatch, done: torch.cuda.Event) -> DeviceBatch:
    """Make the working stream wait for a copy, and keep its memory until both are through."""
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(done)
    for tensor in batch:
        tensor.record_stream(current)
    return batch
