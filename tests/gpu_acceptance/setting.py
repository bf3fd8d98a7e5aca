"""Where the acceptance runs and how large its work is; networks and images that parts share."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.free_training import make_noise
from lib.algorithm.trainer import Trainer, TrainingSettings
from lib.training.assembly import make_networks, make_optimizer
from models.resnet import ResNet
from tests.commands import settings
from tests.processes import Done
from utils.config.merge import merge
from utils.distributed.context import DistributedContext

CLASSES = 10
EPS, STEP = 4 / 255, 1 / 255


@dataclass(frozen=True)
class Setting:
    """What every part is given.

    Attributes:
        device: under test; the CPU takes tiny sizes, to show that the parts themselves work.
        quick: about two minutes on an H100, instead of ten.
        folder: empty, for data and runs.
        start: starts a script in a folder, as `tests.processes.script` does.
        ends: when no further case is begun, monotonic seconds.
    """

    device: torch.device
    quick: bool
    folder: Path
    start: Callable[..., AbstractContextManager[Any]]
    ends: float = float("inf")

    @property
    def cuda(self) -> bool:
        """Whether this is the real thing."""
        return self.device.type == "cuda"

    def choose(self, full: Any, quick: Any, tiny: Any) -> Any:
        """What suits the size of the work: of CUDA, of CUDA with --quick, of the CPU."""
        if not self.cuda:
            return tiny
        return quick if self.quick else full

    @property
    def crop(self) -> int:
        """Side of images, pixels."""
        return self.choose(224, 224, 32)

    @property
    def arch(self) -> str:
        """Of networks."""
        return self.choose("resnet50", "resnet50", "resnet18")

    def has_time(self) -> bool:
        """Whether another case may begin."""
        return time.monotonic() < self.ends

    def run(self, script: str, *arguments: object, **env: str) -> Done:
        """Run a script on the device to its end, in the folder."""
        with self.start(script, *arguments, cwd=self.folder, **env) as running:
            return running.end()

    @cached_property
    def data(self) -> Path:
        """DIR of 64 training and 32 validation images, 4 classes, 40 px."""
        return write_images(self.folder / "data", {"train": 16, "val": 8})

    def training(self, *more: object, **changes: object) -> list[object]:
        """Arguments of main_free.py: a network and images of seconds, on the device."""
        return [self.data, "--device", self.device.type, *settings(**changes), *more]


def write_images(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """DIR/SPLIT/CLASS/IMAGE.png, each class of a colour of its own under noise."""
    generator = np.random.default_rng(seed)
    colours = generator.uniform(60, 200, (4, 1, 1, 3))
    for split, count in counts.items():
        for label, colour in enumerate(colours):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.normal(colour, 40, (40, 40, 3)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def pixels(n: int, size: int, seed: int = 0) -> torch.Tensor:
    """Random images (n, 3, size, size) in [0, 1], on the CPU."""
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def network(arch: str, size: int, hypersphere: bool = False) -> ResNet:
    """Random weights and the statistics of random images; on the CPU, in evaluation mode."""
    torch.manual_seed(0)
    he: tuple[Any, ...] = (True, True, 10.0) if hypersphere else ()
    model = ResNet(arch, CLASSES, *he).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of all batches: one is enough
    with torch.no_grad():
        model(pixels(8, size, seed=1))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def minibatch(n: int, size: int, device: torch.device, seed: int = 0) -> DeviceBatch:
    """Random images and labels."""
    labels = torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(seed))
    fields = pixels(n, size, seed), labels, torch.arange(n)
    return DeviceBatch(*(field.to(device, non_blocking=True) for field in fields))


def trainer_of(
    model: ResNet,
    device: torch.device,
    batch: int,
    size: int,
    *,
    precision: str = "fp32",
    compiled: bool | str = False,
    context: DistributedContext | None = None,
) -> Trainer:
    """A training of a network on a device, as the suite assembles it, at a small learning rate."""
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    config = merge({"TRAIN": {"lr": 1e-3, "precision": precision}})
    margin = 2.0 if model.scale != 1 else 0.0
    return Trainer(
        model,
        make_optimizer(model, config, device.type),
        make_noise(batch, size, device),
        TrainingSettings(EPS, EPS, margin, precision),
        *make_networks(model, compiled, context or DistributedContext(0, 1, device)),
    )


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The l2 norm of the difference in relation to that of what is expected."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).norm() / expected.norm()).item()
