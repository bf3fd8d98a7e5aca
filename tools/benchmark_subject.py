"""One subject of the benchmark, once: `python -m tools.benchmark_subject CASE` prints JSON.

Started by `tools.benchmark`, in a process of its own, so that nothing is left of the one before.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Container, Iterator
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn

from lib.algorithm.free_training import make_noise
from lib.algorithm.pgd import pgd
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.protocols import PGDSpec, ThreatModel
from lib.algorithm.trainer import Trainer, TrainingSettings
from lib.algorithm.training_methods import METHODS, draw_noise_
from lib.training.assembly import make_networks, make_optimizer
from models.resnet import ResNet
from tools import benchmark_baseline as plain
from tools.benchmark_case import ATTACK_STEPS, EPS, REPLAYS, STEP_SIZE, Case
from tools.benchmark_evaluation import (
    Work,
    reading_plain,
    reading_suite,
    standard_plain,
    standard_suite,
)
from utils.config.settings import Config, Train
from utils.cpu_memory import keep_freed_memory
from utils.distributed.context import DistributedContext

PGD_STEPS = 50


def measure(case: Case, wanted: Container[str] | None = None) -> dict[str, Any]:
    """Images and seconds of every action, or of those that are wanted, and the most memory, bytes.

    On CUDA that of the device's allocator, else what the process ever had resident.
    """
    torch.manual_seed(0)
    # As both programs do; the suite's evaluation does not, whose batches have every size.
    torch.backends.cudnn.benchmark = case.subject == "plain" or case.part != "standard"
    works = SUBJECTS[case.part, case.subject](case)
    takes = {a: take(work, case) for a, work in works.items() if wanted is None or a in wanted}
    if torch.device(case.device).type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
    return {"takes": takes, "peak_memory_bytes": peak}


def take(work: Work, case: Case) -> tuple[float, float]:
    """Images and seconds of enough work; `standard` takes minutes, and its start is short."""
    times = 1
    if case.part != "standard":
        repeat(work, 2, case.device)
        times = math.ceil(case.take_seconds / repeat(work, 1, case.device)[1])
    return repeat(work, times, case.device)


def repeat(work: Work, times: int, device: str) -> tuple[float, float]:
    """Images and seconds of so many units, with the device through before and after."""
    kind = torch.device(device).type
    synchronise = getattr(torch, kind).synchronize if kind != "cpu" else lambda: None
    synchronise()
    start = time.perf_counter()
    images = sum(work() for _ in range(times))
    synchronise()
    return images, time.perf_counter() - start


def example(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels (B, 3, H, W) and labels (B,) on the device."""
    images = torch.rand(case.batch_size, 3, case.crop_size, case.crop_size)
    labels = torch.randint(0, 1000, (case.batch_size,))
    if case.subject == "suite":
        images = images.to(memory_format=torch.channels_last)
    return images.to(case.device), labels.to(case.device)


def published_model(case: Case) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(case.arch)
    return model.to(case.device)


def own_model(case: Case) -> ResNet:
    return ResNet(case.arch, 1000).to(case.device).to(memory_format=torch.channels_last)


def free_plain(case: Case) -> dict[str, Work]:
    step = plain.free_step(published_model(case).train(), *example(case), EPS, EPS)
    return {"free": lambda: step() or case.batch_size}


def trainer_of(case: Case) -> Trainer:
    """The suite's, on the case's network and precision."""
    config = Config(TRAIN=Train(compile=case.compiled))
    model, device = own_model(case).train(), torch.device(case.device)
    return Trainer(
        model,
        make_optimizer(model, config, device.type),
        make_noise(case.batch_size, case.crop_size, device),
        TrainingSettings(EPS, EPS, precision=case.precision, attack_steps=ATTACK_STEPS),
        *make_networks(model, config.TRAIN.compile, DistributedContext(0, 1, device)),
    )


def free_suite(case: Case) -> dict[str, Work]:
    """The suite's free step, and a natural training step of the same network and precision."""
    minibatch, trainer = example(case), trainer_of(case)

    def step(method: str) -> float:
        METHODS[method].step(trainer, *minibatch)
        return case.batch_size

    return {method: partial(step, method) for method in ("free", "natural")}


def methods_suite(case: Case) -> dict[str, Work]:
    """A whole minibatch of every training method: its replays, attack steps and drawn noise."""
    minibatch, trainer = example(case), trainer_of(case)

    def train(name: str) -> float:
        method = METHODS[name]
        if method.draws_noise:
            draw_noise_(trainer.noise, EPS, (0,), range(case.batch_size))
        for _ in range(REPLAYS if name == "free" else 1):
            method.step(trainer, *minibatch)
        return case.batch_size

    return {name: partial(train, name) for name in METHODS}


def pgd_plain(case: Case) -> dict[str, Work]:
    """A step of the published PGD; images are counted as PGD-50 would attack them."""
    iterates = plain.pgd(published_model(case).eval(), *example(case), EPS, STEP_SIZE)
    return {"pgd": lambda: (next(iterates), case.batch_size / PGD_STEPS)[1]}


def pgd_suite(case: Case) -> dict[str, Work]:
    """A step of the suite's PGD, counted in the same way."""
    images, labels = example(case)
    model = own_model(case).eval().requires_grad_(False)  # as `attacking` has it
    outputs = torch.compile(model.outputs) if case.compiled else None
    threat = ThreatModel(EPS, precision=case.precision)
    attack = PGDAttack(model, PGDSpec(PGD_STEPS, STEP_SIZE), threat, outputs)
    search = attack.search_logits
    step = partial(pgd, steps=PGD_STEPS, step_size=STEP_SIZE, eps=EPS)

    def steps() -> Iterator[Any]:
        start = torch.empty_like(images).uniform_(-EPS, EPS)
        for _ in itertools.count():
            yield from step(search, images, labels, start)

    iterates = steps()
    return {"pgd": lambda: (next(iterates), case.batch_size / PGD_STEPS)[1]}


SUBJECTS = {
    ("free", "plain"): free_plain,
    ("free", "suite"): free_suite,
    ("methods", "suite"): methods_suite,
    ("pgd", "plain"): pgd_plain,
    ("pgd", "suite"): pgd_suite,
    ("standard", "plain"): standard_plain,
    ("standard", "suite"): standard_suite,
    ("reading", "plain"): reading_plain,
    ("reading", "suite"): reading_suite,
}

if __name__ == "__main__":
    given = Case(**json.loads(sys.argv[1]))
    if given.subject == "suite":
        keep_freed_memory()  # as main_free.py and evaluate.py do
    print(json.dumps(measure(given)))
