"""One subject of the benchmark, once: `python -m tools.benchmark_subject CASE` prints JSON.

`tools.benchmark` starts it in a process of its own, so that nothing is left of the one before.
CASE and the answer are JSON, which is all that two checkouts of the suite must have in common.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torchvision
from torch import nn

from lib.algorithm.pgd import Search, frozen_eval, pgd
from lib.algorithm.protocols import PGDSpec, ThreatModel
from lib.algorithm.training import TRAINING_STEP
from lib.data.folders import read_tree
from lib.evaluation.task import EvaluationData, validate_pgd
from lib.training.setup import make_trainer
from models.resnet import ResNet
from tools import published_loop as plain
from tools.published_loop import EPS, STEP_SIZE
from utils.compiling import Network, compiled_for, recorded, require_alike
from utils.config.settings import Config, Data, Train
from utils.cpu_memory import keep_freed_memory
from utils.distributed.context import DistributedContext

PGD_STEPS = 50
Actions = dict[str, tuple[Callable[[], Any], float]]  # what does it, and to how many images


@dataclass(frozen=True)
class Case:
    """What is measured."""

    part: str  # free, pgd or standard
    subject: str  # `plain` for the published loop, `suite` for this one
    precision: str
    compiled: bool | str  # as TRAIN.compile
    arch: str
    batch_size: int
    crop_size: int
    device: str
    workers: int
    data: str  # of `standard`; its images are in gaussian_noise/1/CLASS
    pgd_steps: int  # of `standard`
    take_seconds: float  # the shortest time measured, but a unit of work at least


def measure(case: Case) -> dict[str, Any]:
    """Images and seconds of every action, and the most memory of a GPU in bytes."""
    torch.manual_seed(0)
    # As both programs do; the suite's evaluation does not, whose batches have every size.
    torch.backends.cudnn.benchmark = case.subject == "plain" or case.part != "standard"
    subject = Plain(case) if case.subject == "plain" else Suite(case)
    actions: Actions = getattr(subject, case.part)()
    takes = {name: take(case, *action) for name, action in actions.items()}
    return {"takes": takes, "peak_memory_bytes": torch.cuda.max_memory_allocated()}


def take(case: Case, work: Callable[[], Any], images: float) -> tuple[float, float]:
    """Images and seconds of enough work; `standard` takes minutes, and its start is short."""
    synchronise = getattr(torch, torch.device(case.device).type).synchronize

    def seconds(times: int) -> float:
        synchronise()
        start = time.perf_counter()
        for _ in range(times):
            work()
        synchronise()
        return time.perf_counter() - start

    if case.part == "standard":
        return images, seconds(1)
    seconds(2)
    times = math.ceil(case.take_seconds / seconds(1))
    return times * images, seconds(times)


class HalfRobust(nn.Module):
    """A network at its full cost, whose answer is 0 for an image brighter than middle grey.

    So images just above it are misclassified from the third iterate of PGD on, bright ones never.
    """

    def __init__(self, network: nn.Module, middle: float) -> None:
        super().__init__()
        self.network, self.middle = network, middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to the network's logits, made small, and class 0's brightness."""
        logits: torch.Tensor = 1e-3 * self.network(x).float().tanh()
        logits[:, 0] += 20 * (x.float().mean((1, 2, 3)) - self.middle)
        return logits


def minibatch(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels (B, 3, H, W) and labels (B,) on the device."""
    images = torch.rand(case.batch_size, 3, case.crop_size, case.crop_size)
    return images.to(case.device), torch.randint(0, 1000, (case.batch_size,)).to(case.device)


def evaluation(robust_accuracy: Callable[[], float], images: int) -> Actions:
    """Evaluate the images of `standard`, of which half must turn out robust."""

    def work() -> None:
        assert robust_accuracy() == 50

    return {"evaluation": (work, images)}


class Plain:
    """The published loop."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model = torchvision.models.get_model(case.arch).to(case.device)

    def free(self) -> Actions:
        step = plain.free_step(self.model.train(), *minibatch(self.case))
        return {"free": (step, self.case.batch_size)}

    def pgd(self) -> Actions:
        """A step; images are counted as PGD-50 would attack them."""
        iterates = plain.pgd(self.model.eval(), *minibatch(self.case))
        return {"pgd": (partial(next, iterates), self.case.batch_size / PGD_STEPS)}

    def standard(self) -> Actions:
        """Every step for every image."""
        case = self.case
        middle = fmean((0.5 - mean) / std for mean, std in zip(plain.MEAN, plain.STD, strict=True))
        folder = f"{case.data}/gaussian_noise/1"
        batches = plain.loader(folder, case.crop_size, case.batch_size, case.workers)
        model = HalfRobust(self.model, middle)
        work = partial(plain.evaluate_pgd, model, batches, case.device, case.pgd_steps)
        return evaluation(work, len(list(Path(folder).glob("*/*"))))


class Suite:
    """The suite, on the case's precision; eps and step of a training are 4/255 by default."""

    def __init__(self, case: Case) -> None:
        self.case = case
        config = Config(
            TRAIN=Train(arch=case.arch, precision=case.precision),
            DATA=Data(batch_size=case.batch_size, crop_size=case.crop_size),
        )
        self.context = DistributedContext(0, 1, torch.device(case.device))
        self.model = ResNet(case.arch, 1000)
        self.trainer = make_trainer(self.model, config, 0.0, self.context, case.compiled)
        images, self.labels = minibatch(case)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.network: Network = self.trainer.network  # what is measured
        self.frozen = ExitStack()

    def free(self) -> Actions:
        """A free and a natural training step."""
        self.model.train()
        batch = self.trainer, self.images, self.labels
        size = self.case.batch_size
        return {name: (partial(TRAINING_STEP[name], *batch), size) for name in ("free", "natural")}

    def pgd(self) -> Actions:
        """A step, counted in the same way."""
        start = torch.empty_like(self.images).uniform_(-EPS, EPS)
        search = Search(sys.maxsize, STEP_SIZE, EPS)

        def steps() -> Iterator[Any]:
            with frozen_eval(self.model):  # as attacks have it
                self.network = self.searched(self.model) or self.model
                logits = partial(self.trainer.logits, self.network)
                yield from pgd(logits, self.images, self.labels, start, search)

        return {"pgd": (partial(next, steps()), self.case.batch_size / PGD_STEPS)}

    def searched(self, network: nn.Module) -> Network | None:
        """A frozen network as evaluations search it: compiled, recorded, or None for itself."""
        case, device = self.case, self.context.device
        if case.compiled:
            compiled = compiled_for(network, [case.batch_size], device)
            one, other = (partial(self.trainer.logits, each) for each in (compiled, network))
            require_alike(one, other, self.images)  # a long evaluation hardly notices it
            return compiled
        if device.type == "cuda" and case.precision != "fp32":
            x = self.images.clone().requires_grad_()
            return recorded(partial(self.trainer.logits, network), x)
        return None

    def standard(self) -> Actions:
        """Drops what is misclassified and refills the batch."""
        case, tree = self.case, read_tree(f"{self.case.data}/gaussian_noise/1")
        data = EvaluationData(
            tree, None, case.crop_size, case.batch_size, case.workers, self.context
        )
        attack = PGDSpec(case.pgd_steps, STEP_SIZE), ThreatModel(EPS, precision=case.precision)
        images, model = len(tree.files), HalfRobust(self.model, 0.5)
        self.frozen.enter_context(frozen_eval(model))
        outputs = self.searched(model)
        return evaluation(partial(validate_pgd, model, data, *attack, images, outputs), images)


if __name__ == "__main__":
    chosen = Case(**json.loads(sys.argv[1]))
    if chosen.subject == "suite":
        keep_freed_memory()  # as main_free.py and evaluate.py do
    print(json.dumps(measure(chosen)))
