"""Where the checks run and at what size: on CUDA the real one, on the CPU a tiny one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lib.algorithm.pgd_attack import DeviceBatch
from lib.algorithm.training import Trainer
from lib.training.setup import make_trainer
from models.resnet import ResNet
from utils.config.load import merge
from utils.distributed.context import DistributedContext

CLASSES, EPS, STEP = 10, 4 / 255, 1 / 255


@dataclass(frozen=True)
class Scale:
    """A device, and the network and side of images, in pixels, that suit it."""

    device: torch.device
    arch: str
    size: int

    @property
    def cuda(self) -> bool:
        """Whether this is the real thing."""
        return self.device.type == "cuda"


CUDA = Scale(torch.device("cuda", 0), "resnet50", 224)
CPU = Scale(torch.device("cpu"), "resnet18", 32)
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")


def checked(quick: bool = False, cpu: bool = True, slow: bool = False) -> Any:
    """Run a test at scale CUDA, marked `gpu` and perhaps `gpu_quick`, and CPU, perhaps `slow`."""
    marks = [NO_CUDA, pytest.mark.gpu, *[pytest.mark.gpu_quick] * quick]
    scales = [pytest.param(CUDA, marks=marks, id="cuda")]
    if cpu:
        scales.append(pytest.param(CPU, marks=[pytest.mark.slow] * slow, id="cpu"))
    return pytest.mark.parametrize("scale", scales)


def pixels(n: int, size: int, seed: int = 0) -> torch.Tensor:
    """Random images (n, 3, size, size) in [0, 1], on the CPU."""
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def network(arch: str, size: int, hypersphere: bool = False) -> ResNet:
    """Random weights and the statistics of random images; on the CPU, in evaluation mode."""
    torch.manual_seed(0)
    model = ResNet(arch, CLASSES, hypersphere, hypersphere, 10.0).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(pixels(8, size, seed=1))
    return model.eval()


def minibatch(n: int, scale: Scale, seed: int = 0) -> DeviceBatch:
    """Random images and labels on the device."""
    labels = torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(seed))
    images = pixels(n, scale.size, seed).to(memory_format=torch.channels_last)
    fields = images, labels, torch.arange(n)
    return DeviceBatch(*(field.to(scale.device, non_blocking=True) for field in fields))


def trainer_of(model: ResNet, batch: int, scale: Scale, **train: object) -> Trainer:
    """A training as the suite assembles it, at a small learning rate."""
    sizes = {"batch_size": batch, "crop_size": scale.size, "img_size": scale.size}
    config = merge({"TRAIN": {"lr": 1e-3, **train}, "DATA": sizes})
    margin = 2.0 if model.scale != 1 else 0.0
    return make_trainer(model.train(), config, margin, DistributedContext(0, 1, scale.device))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The l2 norm of the difference in relation to that of what is expected."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).norm() / expected.norm()).item()


def write_images(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """DIR/SPLIT/CLASS/IMAGE.png, each of 4 classes of a colour of its own under noise."""
    generator = np.random.default_rng(seed)
    for split, count in counts.items():
        for label, colour in enumerate(generator.uniform(60, 200, (4, 1, 1, 3))):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                values = generator.normal(colour, 40, (40, 40, 3)).clip(0, 255)
                Image.fromarray(values.astype(np.uint8)).save(folder / f"{number}.png")
    return root
