"""From files to batches on the device: readers, copies, and the scaling to [0, 1]."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from lib.algorithm.batch import DeviceBatch
from lib.data.datasets import (
    Batch,
)
from lib.data.samplers import Batches
from lib.data.shared_ring import Numbered, RingDataset, RingLoader
from utils.errors import UserError

PREFETCH = 4  # batches that each worker is ahead


def first(batches: Batch) -> Batch:
    """Collate nothing: the datasets make whole batches."""
    return batches


def ignore_signals(_: int) -> None:
    """A worker leaves Ctrl-C and SLURM's warning to the main process, which ends it."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def make_loader(
    dataset: Any,
    batches: Batches,
    workers: int,
    device: torch.device,
    worker_init: Callable[[int], None] = ignore_signals,
) -> DataLoader:
    """A loader of `Batch`es whose workers live as long as it does.

    For CUDA it pins each batch instead, which copies it in a thread beside the work.

    Args:
        dataset: `ImageBatches` or `CorruptionBatches`.
        batches: which images are read together.
        workers: reading processes of this process; 0 reads in line.
        device: where the batches go.
        worker_init: called in each worker.
    """
    common = {"num_workers": workers, "collate_fn": first, "worker_init_fn": worker_init}
    if not workers:
        return DataLoader(dataset, batch_sampler=batches, **common)
    common |= {"persistent_workers": True, "prefetch_factor": PREFETCH}
    if device.type == "cuda":
        return DataLoader(dataset, batch_sampler=batches, pin_memory=True, **common)
    slots = PREFETCH * workers + 1
    ring = RingDataset(dataset, slots, batches.largest)
    return RingLoader(ring, batch_sampler=Numbered(batches, slots), **common)


def to_device(
    batch: Batch, device: torch.device, dtype: torch.dtype = torch.float32
) -> DeviceBatch:
    """Send a batch as bytes; mirror and scale to [0, 1] there.

    Raises:
        UserError: an image of it could not be read.
    """
    if batch.error is not None:
        raise UserError(batch.error)
    send = {"device": device, "non_blocking": True}
    pixels, flips = batch.pixels.to(**send), batch.flips.to(**send)
    if batch.flips.any():  # read on the host: no synchronisation
        pixels = torch.where(flips.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    images = scaled(pixels, dtype).contiguous(memory_format=torch.channels_last)
    return DeviceBatch(images, batch.labels.to(**send), batch.indices.to(**send))


def scaled(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes as numbers in [0, 1]."""
    if pixels.device.type != "cpu":
        return pixels.to(dtype).div_(255)
    # NumPy does it in this thread alone. After a parallel loop of PyTorch's, OpenMP's threads wait
    # for the next one by spinning, for longer than a batch takes, on cores that the readers need.
    result = torch.empty_like(pixels, dtype=dtype)
    values = result.numpy()
    np.divide(pixels.numpy(), 255, out=values, dtype=values.dtype)
    return result


def on_device(
    loader: Iterable[Batch], device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[DeviceBatch]:
    """The loader's batches on the device; on CUDA the next one is copied during the work."""
    if device.type != "cuda":
        yield from (to_device(batch, device, dtype) for batch in loader)
        return
    stream = torch.cuda.Stream(device)
    pending: tuple[DeviceBatch, torch.cuda.Event] | None = None
    for batch in loader:
        with torch.cuda.stream(stream):
            copied = to_device(batch, device, dtype)
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


def share_of_workers(workers: int, world_size: int) -> int:
    """Reading processes of each of `world_size` processes: at least one if there are any.

    More than the machine has cores would only get in each other's way.
    """
    cores = os.cpu_count() or 1
    return max(1, min(workers, cores) // world_size) if workers else 0
