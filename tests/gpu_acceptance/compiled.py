"""10. torch.compile: few compilations, and what eager computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters

from lib.algorithm.free_training import free_step
from tests.gpu_acceptance.checks import Check, at_most
from tests.gpu_acceptance.setting import Setting, difference, minibatch, network, pixels, trainer_of
from utils.config.readers import REDUCE_OVERHEAD

MOST = 3  # compilations


def checks(setting: Setting) -> Iterator[Check]:
    """Training, evaluation; DDP is in part 9."""
    with compiler(setting):
        yield from training(setting)
        yield from evaluation(setting)


@contextmanager
def compiler(setting: Setting) -> Iterator[None]:
    """torch.compile as it is on CUDA; on the CPU its front end, which takes no minutes."""
    compile_ = torch.compile
    if not setting.cuda:
        torch.compile = partial(compile_, backend="eager")
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch.compile = compile_
        torch._dynamo.reset()


def compilations(work: Callable[[], Any]) -> tuple[Any, int]:
    """What some work gives, and how many graphs were compiled for it."""
    counters.clear()
    return work(), counters["stats"]["unique_graphs"]


def training(setting: Setting) -> Iterator[Check]:
    """Two whole minibatches, a partial one, a whole one."""
    batch, size = 8, setting.crop
    images, labels, _ = minibatch(batch, size, setting.device)

    def train(mode: bool | str) -> torch.Tensor:
        model = network(setting.arch, size, hypersphere=True)
        trainer = trainer_of(model, setting.device, batch, size, compiled=mode)
        rows = (batch, batch, batch - 3, batch)
        losses = [free_step(trainer, images[:n], labels[:n])[0] for n in rows]
        return torch.stack(losses).cpu()

    eager = train(False)
    modes = ((True, "training"), (REDUCE_OVERHEAD, f"training with {REDUCE_OVERHEAD}"))
    for mode, name in setting.choose(modes, modes, modes[:1]):
        found, count = compilations(partial(train, mode))
        yield at_most(f"compilations of {name}", count, MOST)
        yield at_most(f"losses of {name}, relative to eager", difference(found, eager), 1e-2)


def evaluation(setting: Setting) -> Iterator[Check]:
    """Outputs for batches of several sizes, as the pool's."""
    model = network(setting.arch, setting.crop, hypersphere=True).to(setting.device)
    model = model.to(memory_format=torch.channels_last)
    images = pixels(16, setting.crop).to(setting.device)
    outputs = torch.compile(model.outputs)

    def evaluate(outputs_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([outputs_of(images[:n]) for n in (16, 5, 9, 1, 16)])

    eager = evaluate(model.outputs)
    found, count = compilations(lambda: evaluate(outputs))
    yield at_most("compilations of evaluation", count, MOST)
    yield at_most("its outputs, relative difference from eager", difference(found, eager), 1e-2)
