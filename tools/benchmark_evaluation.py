"""Subjects of the benchmark that read files: whole evaluations, and ImageNet-C."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from lib.algorithm.protocols import ThreatModel
from lib.data.datasets import FolderBatches, eval_transform
from lib.data.folders import read_split
from lib.data.loader import make_loader
from lib.data.samplers import FolderShards
from lib.data.to_device import on_device
from lib.evaluation.attacks import parse_attack
from lib.evaluation.evaluate import Evaluation
from lib.evaluation.load_model import EvaluatedModel
from lib.evaluation.model_settings import settings_from
from lib.evaluation.validation import EvaluationData
from lib.imagenet_c.scan import find_folders, read_corruptions
from models.resnet import ResNet
from tools import benchmark_baseline as plain
from tools.benchmark_case import EPS, STEP_SIZE, Case
from utils.config.settings import Config
from utils.distributed.context import DistributedContext
from utils.logging import Logger
from utils.storage.conditions import Conditions

Work = Callable[[], float]  # does a unit of work; returns the number of images it amounts to


def reading_plain(case: Case) -> dict[str, Work]:
    """A float loader for each folder of an ImageNet-C tree."""
    return both_sizes(
        case,
        lambda resize: plain.read_folders(
            case.data, resize, case.crop_size, case.batch_size, case.workers, case.device
        ),
    )


def reading_suite(case: Case) -> dict[str, Work]:
    """The suite's one dataset over all folders."""
    device = torch.device(case.device)

    def read(resize: int | None) -> float:
        names = os.listdir(case.data)
        folders = read_corruptions(case.data, find_folders(case.data, names)).folders
        trees = list(folders.values())
        data = FolderBatches(trees, eval_transform(resize, case.crop_size), case.crop_size)
        sizes = {number: len(tree.files) for number, tree in enumerate(trees)}
        plan = FolderShards(sizes, case.batch_size)
        loader = make_loader(data, plan, case.workers, device)
        return sum(len(batch.labels) for batch in on_device(loader, device))

    return both_sizes(case, read)


def both_sizes(case: Case, read: Callable[[int | None], float]) -> dict[str, Work]:
    """Cropped alone, and resized before (the shorter side to 256 for a crop of 224)."""
    return {
        "crop": lambda: read(None),
        "resize and crop": lambda: read(case.crop_size * 256 // 224),
    }


class HalfRobust(nn.Module):
    """A network at its full cost, whose answer is 0 for an image brighter than middle grey.

    So images just above it are misclassified from the third iterate of PGD on, and bright ones
    never, whatever the network's weights are.

    Args:
        network: images to logits.
        mean, std: what the images have been normalised by, for each colour.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = nn.Buffer(torch.tensor(mean)), nn.Buffer(torch.tensor(std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to the network's logits, made small, and class 0's brightness."""
        logits: torch.Tensor = self.network(x).float()
        logits = 1e-3 * logits / logits.detach().abs().amax(1, keepdim=True)
        grey = (x.float().mean((2, 3)) * self.std + self.mean).mean(1)
        bright = torch.zeros_like(logits)
        bright[:, 0] = 20 * (grey - 0.5)
        return logits + bright


def standard_plain(case: Case) -> dict[str, Work]:
    """The published evaluation: every step for every image."""
    model = HalfRobust(torchvision.models.get_model(case.arch), plain.MEAN, plain.STD).to(
        case.device
    )

    def evaluate() -> float:
        sizes = case.crop_size, case.batch_size, case.workers
        right, images = plain.evaluate_pgd(
            model, case.data, *sizes, torch.device(case.device), EPS, STEP_SIZE, case.pgd_steps
        )
        assert 2 * right == images, f"{right} of {images} images are robust"
        return images

    return {"evaluation": evaluate}


def standard_suite(case: Case) -> dict[str, Work]:
    """The suite's evaluation, which drops what is misclassified and refills the batch."""
    network = HalfRobust(ResNet(case.arch, 1000), [0.0] * 3, [1.0] * 3)
    model: Any = network.to(case.device).to(memory_format=torch.channels_last)
    evaluated = EvaluatedModel(model, settings_from(Config(), None), Path(), {})
    conditions = Conditions(
        kind="attack",
        protocol="standard",
        checkpoint="",
        images="",
        resize=None,
        crop=case.crop_size,
    )
    spec = parse_attack(f"pgd{case.pgd_steps}", STEP_SIZE)
    context = DistributedContext(0, 1, torch.device(case.device))
    sizes = case.crop_size, case.batch_size, case.workers
    data = EvaluationData(read_split(case.data, "val"), None, *sizes, context)
    threat = ThreatModel(EPS, precision=case.precision)

    def evaluate() -> float:
        with tempfile.TemporaryDirectory() as folder:
            stem = Path(folder) / "attack"
            evaluation = Evaluation(
                evaluated, None, data, threat, [spec], conditions, stem, Logger(False)
            )
            evaluation.run()
        rows = evaluation.rows[spec.name].values()
        right, images = sum(row.robust for row in rows), len(rows)
        assert 2 * right == images, f"{right} of {images} images are robust"
        return images

    return {"evaluation": evaluate}
