"""Batches on their device: copies beside the work, bytes as numbers in [0, 1]."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch

from lib.algorithm.pgd_attack import DeviceBatch
from lib.data.datasets import Batch
from lib.data.loader import Loader, WhileWaiting
from utils.errors import UserError


def to_device(
    batch: Batch, device: torch.device, dtype: torch.dtype = torch.float32
) -> DeviceBatch:
    """Send a batch as bytes; scale to [0, 1] there."""
    if batch.error is not None:
        raise UserError(batch.error)

    def send(tensor: torch.Tensor) -> torch.Tensor:
        # On MPS a copy that is not waited for can read what the host has overwritten since.
        return tensor.to(device, non_blocking=device.type == "cuda")

    images = scaled(send(batch.pixels), dtype).contiguous(memory_format=memory_format(device))
    return DeviceBatch(images, send(batch.labels), send(batch.indices))


def memory_format(device: torch.device) -> torch.memory_format:
    """channels_last, but on MPS, where batch-norm's backward fails in it."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def scaled(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes as numbers in [0, 1]: the same bits on every device."""
    if pixels.device.type != "cpu":
        # CUDA divides by a number as it multiplies by its reciprocal: half of the 256 are others.
        return table_of_255ths(pixels.device, dtype)[pixels.int()]
    # NumPy does it in this thread alone. After a parallel loop of PyTorch's, OpenMP's threads wait
    # for the next one by spinning, for longer than a batch takes, on cores that the workers need.
    result = torch.empty_like(pixels, dtype=dtype)
    values = result.numpy()
    np.divide(pixels.numpy(), 255, out=values, dtype=values.dtype)
    return result


@lru_cache
def table_of_255ths(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """0/255 to 255/255, divided on the host."""
    return scaled(torch.arange(256, dtype=torch.uint8), dtype).to(device)


@lru_cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device's copies."""
    return torch.cuda.Stream(device)


def on_device(
    loader: Loader,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    while_waiting: WhileWaiting = lambda: False,
) -> Iterator[DeviceBatch]:
    """The loader's batches on the device; on CUDA the next one is copied during the work."""
    batches = loader.batches(while_waiting)
    if device.type != "cuda":
        yield from (to_device(batch, device, dtype) for batch in batches)
        return
    stream = copy_stream(device)
    pending: tuple[DeviceBatch, torch.cuda.Event] | None = None
    for batch in batches:
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
