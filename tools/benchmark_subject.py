"""One subject of the benchmark, once: `python -m tools.benchmark_subject CASE` prints JSON.

`tools.benchmark` starts it in a process of its own, so that nothing is left of the one before.
CASE and the answer are JSON, which is all that two checkouts of the suite must have in common.
"""

import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torchvision
from torch import nn

from lib.algorithm.pgd import Search, pgd
from lib.algorithm.protocols import ThreatModel
from lib.algorithm.training import METHODS, Trainer, draw_noise_
from lib.data.datasets import FolderBatches, eval_transform
from lib.data.folders import read_split
from lib.data.loader import make_loader
from lib.data.sampler import EvaluationSampler, share_in_batches
from lib.data.to_device import on_device
from lib.evaluation.attacks import parse_attack
from lib.evaluation.evaluate import Evaluation
from lib.evaluation.load_model import EvaluatedModel
from lib.evaluation.model_settings import settings_from
from lib.evaluation.validation import EvaluationData
from lib.imagenet_c.tree import find_folders, read_corruptions
from lib.training.setup import make_trainer
from models.resnet import ResNet
from tools import published_loop as plain
from utils.config.settings import Config, Data, Train
from utils.cpu_memory import keep_freed_memory
from utils.distributed.context import DistributedContext
from utils.logging import Logger
from utils.storage.conditions import Conditions

EPS, STEP_SIZE, PGD_STEPS = 4 / 255, 1 / 255, 50
REPLAYS = 4
MISCLASSIFIED, ROBUST = 129, 204  # grey levels of the images of `standard`; see `HalfRobust`
Work = Callable[[], float]  # does a unit of work; returns the number of images it amounts to


@dataclass(frozen=True)
class Case:
    """What is measured."""

    part: str  # free, methods, pgd, standard or reading
    subject: str  # `plain` for the published loop, `suite` for this one
    precision: str
    compiled: bool | str  # as TRAIN.compile
    arch: str
    batch_size: int
    crop_size: int
    device: str
    workers: int
    data: str  # folder of the images of `reading` and `standard`
    pgd_steps: int  # of `standard`
    take_seconds: float  # the shortest time measured, but a unit of work at least


def measure(case: Case) -> dict[str, Any]:
    """Images and seconds of every action, and the most memory in bytes.

    On CUDA that of the device's allocator, else what the process ever had resident.
    """
    torch.manual_seed(0)
    # As both programs do; the suite's evaluation does not, whose batches have every size.
    torch.backends.cudnn.benchmark = case.subject == "plain" or case.part != "standard"
    works = SUBJECTS[case.part, case.subject](case)
    takes = {action: take(work, case) for action, work in works.items()}
    if torch.device(case.device).type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
    return {"takes": takes, "peak_memory_bytes": peak}


def take(work: Work, case: Case) -> tuple[float, float]:
    """Images and seconds of enough work; `standard` takes minutes, and its start is short."""

    def timed(times: int) -> tuple[float, float]:
        synchronise()
        start = time.perf_counter()
        images = sum(work() for _ in range(times))
        synchronise()
        return images, time.perf_counter() - start

    backend = torch.device(case.device).type
    synchronise = getattr(torch, backend).synchronize if backend != "cpu" else lambda: None
    if case.part == "standard":
        return timed(1)
    timed(2)
    return timed(math.ceil(case.take_seconds / timed(1)[1]))


def example(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels (B, 3, H, W) and labels (B,) on the device."""
    images = torch.rand(case.batch_size, 3, case.crop_size, case.crop_size)
    labels = torch.randint(0, 1000, (case.batch_size,))
    if case.subject == "suite":
        images = images.to(memory_format=torch.channels_last)
    return images.to(case.device), labels.to(case.device)


def published_model(case: Case) -> nn.Module:
    return torchvision.models.get_model(case.arch).to(case.device)


def trainer_of(case: Case) -> Trainer:
    """The suite's, on the case's network and precision; eps and step are 4/255 by default."""
    config = Config(
        TRAIN=Train(arch=case.arch, compile=case.compiled, precision=case.precision),
        DATA=Data(batch_size=case.batch_size, crop_size=case.crop_size),
    )
    context = DistributedContext(0, 1, torch.device(case.device))
    return make_trainer(ResNet(case.arch, 1000).train(), config, 0.0, context)


def free_plain(case: Case) -> dict[str, Work]:
    step = plain.free_step(published_model(case).train(), *example(case), EPS, EPS)
    return {"free": lambda: step() or case.batch_size}


def training_suite(case: Case) -> dict[str, Work]:
    """One free and one natural step; as `methods`, a whole minibatch of every training method."""
    minibatch, trainer = example(case), trainer_of(case)
    whole = case.part == "methods"

    def train(name: str) -> float:
        method = METHODS[name]
        if method.draws_noise:
            draw_noise_(trainer.noise, EPS, (0,), range(case.batch_size))
        for _ in range(REPLAYS if whole and name == "free" else 1):
            method.step(trainer, *minibatch)
        return case.batch_size

    return {name: partial(train, name) for name in (METHODS if whole else ("free", "natural"))}


def pgd_plain(case: Case) -> dict[str, Work]:
    """A step of the published PGD; images are counted as PGD-50 would attack them."""
    iterates = plain.pgd(published_model(case).eval(), *example(case), EPS, STEP_SIZE)
    return {"pgd": lambda: (next(iterates), case.batch_size / PGD_STEPS)[1]}


def pgd_suite(case: Case) -> dict[str, Work]:
    """A step of the suite's PGD, counted in the same way."""
    images, labels = example(case)
    trainer = trainer_of(case)
    trainer.model.eval().requires_grad_(False)  # as attacks have it
    logits = partial(trainer.logits, trainer.attack_network)
    search = Search(PGD_STEPS, STEP_SIZE, EPS)

    def steps() -> Iterator[Any]:
        start = torch.empty_like(images).uniform_(-EPS, EPS)
        for _ in itertools.count():
            yield from pgd(logits, images, labels, start, search)

    iterates = steps()
    return {"pgd": lambda: (next(iterates), case.batch_size / PGD_STEPS)[1]}


class HalfRobust(nn.Module):
    """A network at its full cost, whose answer is 0 for an image brighter than middle grey.

    So images just above it are misclassified from the third iterate of PGD on, and bright ones
    never, whatever the network's weights are.

    Args:
        network: images to logits.
        middle: what the network's input averages for middle grey.
    """

    def __init__(self, network: nn.Module, middle: float) -> None:
        super().__init__()
        self.network, self.middle = network, middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to the network's logits, made small, and class 0's brightness."""
        logits: torch.Tensor = self.network(x).float()
        logits = 1e-3 * logits / logits.detach().abs().amax(1, keepdim=True)
        bright = torch.zeros_like(logits)
        bright[:, 0] = 20 * (x.float().mean((1, 2, 3)) - self.middle)
        return logits + bright


def standard_plain(case: Case) -> dict[str, Work]:
    """The published evaluation: every step for every image."""
    middle = fmean((0.5 - mean) / std for mean, std in zip(plain.MEAN, plain.STD, strict=True))
    model = HalfRobust(published_model(case), middle)
    sizes = case.crop_size, False, case.batch_size, case.workers
    batches = plain.loader(f"{case.data}/val", None, *sizes)
    attack = case.device, EPS, STEP_SIZE, case.pgd_steps
    evaluate = partial(plain.evaluate_pgd, model, batches, *attack)
    return {"evaluation": partial(half_robust, evaluate)}


def standard_suite(case: Case) -> dict[str, Work]:
    """The suite's evaluation, which drops what is misclassified and refills the batch."""
    network: Any = HalfRobust(ResNet(case.arch, 1000), 0.5)
    model = network.to(case.device).to(memory_format=torch.channels_last)
    evaluated = EvaluatedModel(model, settings_from(Config(), None), Path(), {})
    context = DistributedContext(0, 1, torch.device(case.device))
    sizes = case.crop_size, case.batch_size, case.workers
    data = EvaluationData(read_split(case.data, "val"), None, *sizes, context)
    spec = parse_attack(f"pgd{case.pgd_steps}", STEP_SIZE)
    attack = ThreatModel(EPS, precision=case.precision), [spec]
    conditions = Conditions(
        kind="attack", protocol="standard", checkpoint="", images="", resize=None, crop=1
    )

    def evaluate() -> tuple[int, int]:
        with tempfile.TemporaryDirectory() as folder:
            stem = Path(folder) / "attack"
            evaluation = Evaluation(evaluated, None, data, *attack, conditions, stem, Logger(False))
            evaluation.run()
        rows = evaluation.rows[spec.name].values()
        return sum(row.robust for row in rows), len(rows)

    return {"evaluation": partial(half_robust, evaluate)}


def half_robust(evaluate: Callable[[], tuple[int, int]]) -> float:
    """The number of images; half of them must have turned out robust."""
    robust, images = evaluate()
    assert 2 * robust == images, f"{robust} of {images} images are robust"
    return images


def reading(case: Case) -> dict[str, Work]:
    """ImageNet-C cropped alone, and resized before, the shorter side to 256 for a crop of 224."""
    read = partial(read_plain if case.subject == "plain" else read_suite, case)
    resize = case.crop_size * 256 // 224
    return {"crop": partial(read, None), "resize and crop": partial(read, resize)}


def read_plain(case: Case, resize: int | None) -> float:
    """A new loader of normalised floats for each folder."""
    seen, sizes = 0, (case.crop_size, True, case.batch_size, case.workers)
    for folder in sorted(Path(case.data).glob("*/*")):
        for images, labels in plain.loader(str(folder), resize, *sizes):
            images, labels = images.to(case.device), labels.to(case.device)
            seen += len(labels)
    return seen


def read_suite(case: Case, resize: int | None) -> float:
    """One loader over all folders."""
    device = torch.device(case.device)
    trees = list(read_corruptions(case.data, find_folders(case.data, ["all"]))[0].values())
    data = FolderBatches(trees, eval_transform(resize, case.crop_size), case.crop_size)
    shares = [share_in_batches(range(len(tree.files)), case.batch_size) for tree in trees]
    sampler = EvaluationSampler([(n, batch) for n, share in enumerate(shares) for batch in share])
    loader = make_loader(data, sampler, case.workers, device)
    return sum(len(batch.labels) for batch in on_device(loader, device))


SUBJECTS = {
    ("free", "plain"): free_plain,
    ("free", "suite"): training_suite,
    ("methods", "suite"): training_suite,
    ("pgd", "plain"): pgd_plain,
    ("pgd", "suite"): pgd_suite,
    ("standard", "plain"): standard_plain,
    ("standard", "suite"): standard_suite,
    ("reading", "plain"): reading,
    ("reading", "suite"): reading,
}

if __name__ == "__main__":
    chosen = Case(**json.loads(sys.argv[1]))
    if chosen.subject == "suite":
        keep_freed_memory()  # as main_free.py and evaluate.py do
    print(json.dumps(measure(chosen)))
