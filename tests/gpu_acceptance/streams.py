"""5. Batches through real readers arrive whole, and copies keep no memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lib.data.datasets import Batch, BatchDataset
from lib.data.loader import Loader, make_loader
from lib.data.samplers import GlobalBatches, Keys
from lib.data.to_device import on_device, to_device
from tests.gpu_acceptance.checks import Check, at_most, equal
from tests.gpu_acceptance.setting import Setting

BATCH = 32
CYCLES = 2_000_000  # of the device's clock: about a millisecond


class Numbered(BatchDataset):
    """Images that are a function of epoch and position, made at once."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitems__(self, keys: Keys) -> Batch:
        rows = torch.tensor([97 * epoch + 31 * position for epoch, position in keys])
        column = torch.arange(3 * self.size**2)
        values = ((rows[:, None] + 1) * (column + 7) % 251).to(torch.uint8)
        pixels = values.view(-1, self.size, self.size, 3).permute(0, 3, 1, 2)
        return Batch(pixels, rows % 10, rows, rows % 2 == 0)


def checks(setting: Setting) -> Iterator[Check]:
    """Checksums under allocator churn, the loop being ahead of the device; memory over passes."""
    passes, size = setting.choose(10, 4, 2), setting.choose(112, 112, 16)
    dataset = Numbered(size)
    order = GlobalBatches(setting.choose(20, 20, 5) * BATCH, BATCH, seed=0)
    loader = make_loader(dataset, order, 2, setting.device)
    weights = torch.arange(1.0, 1 + size, dtype=torch.float64)
    here: list[torch.Tensor] = []
    there: list[torch.Tensor] = []
    for number in range(passes):
        order.set_position(number)
        here += checksums(loader, setting.device, weights)
        batches = (to_device(dataset.__getitems__(keys), torch.device("cpu")) for keys in order)
        there += [(batch.images.double() * weights).sum() for batch in batches]
    wrong = sum(not torch.isclose(a.cpu(), b) for a, b in zip(here, there, strict=True))
    yield equal(f"batches of {len(here)} with other sums than the CPU's", wrong, 0)

    reserved = []
    order.total = 3 * BATCH
    for number in range(setting.choose(40, 40, 4)):
        order.set_position(number)
        checksums(loader, setting.device, weights)
        reserved.append(torch.cuda.memory_reserved() if setting.cuda else 0)
    loader.kill_readers()
    growth = (reserved[-1] - reserved[len(reserved) // 4]) / 2**20
    yield at_most(f"reserved memory over {len(reserved)} passes, MiB more", growth, 0)


def checksums(loader: Loader, device: torch.device, weights: torch.Tensor) -> list[torch.Tensor]:
    """A weighted sum of every batch, on the device, which is kept busy meanwhile."""
    weights, sums = weights.to(device), []
    for batch in on_device(loader, device):
        if device.type == "cuda":
            torch.cuda._sleep(CYCLES)
        sums.append((batch.images.double() * weights).sum())
        del batch
        for divisor in (1, 2, 3):  # what was freed goes to others at once
            torch.full((3 * BATCH * len(weights) ** 2 // divisor,), -1.0, device=device)
    return sums
