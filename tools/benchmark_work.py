"""What the benchmark runs in each of its processes: the suite's own code, or the plain loop.

This module and `tools.benchmark` are entry points like `main_free.py`: alone in `utils` they import
`lib` and `models`, and only inside functions.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools import benchmark_baseline as plain

EPS, STEP_SIZE = 4 / 255, 1 / 255
PGD_STEPS = 50
Work = Callable[[], float]  # does a unit of work; the number of images that this amounts to


@dataclass(frozen=True)
class Case:
    """One process of the benchmark.

    Attributes:
        part: free, pgd, reading or standard.
        subject: `plain` for the written-out loop, `suite` for this one.
        precision: fp32, bf16 or fp16.
        compiled: whether torch.compile is on.
        arch, batch_size, crop_size, device, workers: as in training.
        data: folder of the images of `reading` and `standard`.
        pgd_steps: steps of PGD.
    """

    part: str
    subject: str
    precision: str
    compiled: bool
    arch: str
    batch_size: int
    crop_size: int
    device: str
    workers: int
    data: str = ""
    pgd_steps: int = PGD_STEPS

    @property
    def warmed_up(self) -> bool:
        """Whether it runs before it is timed; `standard` takes minutes, and its start is short."""
        return self.part != "standard"

    @property
    def name(self) -> str:
        """`plain`, `suite fp32`, `suite bf16 compile`."""
        if self.subject == "plain" or self.part == "reading":
            return self.subject
        return f"suite {self.precision}" + (" compile" if self.compiled else "")


def prepare(case: Case) -> dict[str, Work]:
    """Everything that is not to be timed; what is, by name."""
    torch.manual_seed(0)
    if case.subject == "suite":
        from utils.cpu_memory import keep_freed_memory

        keep_freed_memory()  # as main_free.py and evaluate.py do
    else:
        torch.backends.cudnn.benchmark = True  # as the published scripts do
    return globals()[f"{case.part}_{case.subject}"](case)


def example(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels (B, 3, H, W) and labels (B,) on the device."""
    images = torch.rand(case.batch_size, 3, case.crop_size, case.crop_size)
    labels = torch.randint(0, 1000, (case.batch_size,))
    return images.to(case.device), labels.to(case.device)


def free_plain(case: Case) -> dict[str, Work]:
    """The published free step."""
    images, labels = example(case)
    step = plain.free_step(case.arch, images, labels, EPS, EPS)
    return {"free": lambda: step() or case.batch_size}


def free_suite(case: Case) -> dict[str, Work]:
    """The suite's free step, and a natural training step of the same network and precision."""
    from lib.algorithm.free_training import Trainer, TrainingSettings, free_step, make_noise
    from lib.training.setup import make_network, make_optimizer
    from models.resnet import build_model
    from utils.config.schema import Config, Train

    images, labels = example(case)
    images = images.to(memory_format=torch.channels_last)
    config = Config(TRAIN=Train(compile=case.compiled))
    model = build_model(case.arch, 1000)
    model = model.to(case.device, memory_format=torch.channels_last).train()
    trainer = Trainer(
        model,
        make_optimizer(model, config, torch.device(case.device).type),
        make_noise(case.batch_size, case.crop_size, case.device),
        TrainingSettings(EPS, EPS, precision=case.precision),
        make_network(model, config, one_rank(case)),
    )

    def free() -> float:
        free_step(trainer, images, labels)
        return case.batch_size

    def natural() -> float:
        trainer.backward(images, labels)
        trainer.update()
        return case.batch_size

    return {"free": free, "natural": natural}


def one_rank(case: Case) -> Any:
    """A process that is alone."""
    from utils.distributed.context import DistributedContext

    return DistributedContext(0, 1, torch.device(case.device))


def pgd_plain(case: Case) -> dict[str, Work]:
    """A step of the published PGD; images are counted as PGD-50 would attack them."""
    import torchvision

    images, labels = example(case)
    model = torchvision.models.get_model(case.arch).to(case.device).eval()
    iterates = plain.pgd(model, images, labels, EPS, STEP_SIZE)
    return {"pgd": lambda: (next(iterates), case.batch_size / PGD_STEPS)[1]}


def pgd_suite(case: Case) -> dict[str, Work]:
    """A step of the suite's PGD, counted in the same way."""
    from lib.algorithm.pgd import attacking, pgd
    from lib.algorithm.pgd_attack import PGDAttack
    from lib.algorithm.protocols import ThreatModel
    from lib.evaluation.attack_list import parse_attack
    from models.resnet import build_model

    images, labels = example(case)
    images = images.to(memory_format=torch.channels_last)
    model = build_model(case.arch, 1000).to(case.device, memory_format=torch.channels_last)
    outputs = torch.compile(model.outputs) if case.compiled else None
    threat = ThreatModel(EPS, precision=case.precision)

    def steps() -> Iterator[Any]:
        attack = PGDAttack(model, parse_attack(f"pgd{PGD_STEPS}", STEP_SIZE), threat, outputs)
        start = torch.empty_like(images).uniform_(-EPS, EPS)
        with attacking(model):
            for _ in itertools.count():
                settings = {"steps": PGD_STEPS, "step_size": STEP_SIZE, "eps": EPS}
                yield from pgd(attack.search_logits, images, labels, start, **settings)

    iterates = steps()
    return {"pgd": lambda: (next(iterates), case.batch_size / PGD_STEPS)[1]}


def reading_plain(case: Case) -> dict[str, Work]:
    """A float loader for each folder of an ImageNet-C tree."""
    folders = sorted(str(path) for path in Path(case.data).glob("*/*") if path.is_dir())

    def read(resize: int | None) -> float:
        seen = 0
        for folder in folders:
            loader = plain.read_folder(
                folder, resize, case.crop_size, case.batch_size, case.workers
            )
            for images, labels in loader:
                images, labels = images.to(case.device), labels.to(case.device)
                seen += len(labels)
        return seen

    return {"crop": lambda: read(None), "resize and crop": lambda: read(resized(case))}


def resized(case: Case) -> int:
    """The shorter side before the crop: 256 for 224."""
    return case.crop_size * 256 // 224


def reading_suite(case: Case) -> dict[str, Work]:
    """The suite's one dataset over all folders."""
    from lib.data.datasets import eval_transform
    from lib.data.loader import make_loader, on_device
    from lib.imagenet_c.dataset import CorruptionBatches, GroupPlan
    from lib.imagenet_c.scan import read_corruptions

    names = sorted(path.name for path in Path(case.data).iterdir())
    device = torch.device(case.device)

    def read(resize: int | None) -> float:
        tree = read_corruptions(case.data, names)
        data = CorruptionBatches(tree, eval_transform(resize, case.crop_size), case.crop_size)
        plan = GroupPlan(tree.sizes, case.batch_size)
        loader = make_loader(data, plan, case.workers, device)
        return sum(len(batch.labels) for batch in on_device(loader, device))

    return {"crop": lambda: read(None), "resize and crop": lambda: read(resized(case))}


class HalfRobust(nn.Module):
    """A network at its full cost, whose answer is 0 for an image brighter than middle grey.

    So images just above it fall to the third look of PGD, and bright ones never, whatever the
    network's weights are.

    Args:
        network: images to logits.
        mean, std: what the images have been normalised by, for each colour.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to the network's logits, made small, and class 0's brightness."""
        logits = self.network(x).float()
        logits = 1e-3 * logits / logits.detach().abs().amax(1, keepdim=True)
        grey = (x.float().mean((2, 3)) * self.std + self.mean).mean(1)
        bright = torch.zeros_like(logits)
        bright[:, 0] = 20 * (grey - 0.5)
        return logits + bright


def standard_plain(case: Case) -> dict[str, Work]:
    """The published evaluation: every step for every image."""
    import torchvision

    network = torchvision.models.get_model(case.arch)
    model = HalfRobust(network, plain.MEAN, plain.STD).to(case.device)

    def evaluate() -> float:
        right, images = plain.evaluate_pgd(
            model,
            case.data,
            crop=case.crop_size,
            batch=case.batch_size,
            workers=case.workers,
            device=torch.device(case.device),
            eps=EPS,
            step_size=STEP_SIZE,
            steps=case.pgd_steps,
        )
        assert 2 * right == images, f"{right} of {images} images stand"
        return images

    return {"evaluation": evaluate}


def standard_suite(case: Case) -> dict[str, Work]:
    """The suite's evaluation, which drops what has fallen and refills the batch."""
    from lib.algorithm.protocols import ThreatModel
    from lib.data.folders import read_split
    from lib.evaluation.attack_list import parse_attack
    from lib.evaluation.runner import AttackEvaluation
    from lib.evaluation.validation import EvaluationData
    from models.resnet import build_model
    from utils.logging import Logger

    network = build_model(case.arch, 1000)
    model = HalfRobust(network, [0.0] * 3, [1.0] * 3)
    model = model.to(case.device, memory_format=torch.channels_last)
    spec = parse_attack(f"pgd{case.pgd_steps}", STEP_SIZE)
    tree, context = read_split(case.data, "val"), one_rank(case)
    data = EvaluationData(tree, None, case.crop_size, case.batch_size, case.workers, context)
    outputs = torch.compile(model) if case.compiled else None
    threat = ThreatModel(EPS, precision=case.precision)

    def evaluate() -> float:
        with tempfile.TemporaryDirectory() as folder:
            stem = Path(folder) / "attack"
            run = AttackEvaluation(model, data, threat, Logger(False), stem, {}, outputs=outputs)
            rows = run.run([spec])[spec.name]
        right = sum(row.right for row in rows.values())
        assert 2 * right == len(rows), f"{right} of {len(rows)} images stand"
        return len(rows)

    return {"evaluation": evaluate}
