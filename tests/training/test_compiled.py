"""`TRAIN.compile: reduce-overhead`: what holds in memory that each call uses again.

CUDA graphs are not to be had everywhere, so their rules stand in for them: a call overwrites the
outputs and the gradients of the call before, and knows parameters by their addresses.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import settings
from in_process import call, only_error
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.metrics import MetricSums
from lib.algorithm.training import TRAINING_STEP, Trainer, TrainingSettings, make_noise
from lib.training.setup import make_networks, make_optimizer
from models.resnet import ResNet
from utils.config.load import merge
from utils.config.validators import REDUCE_OVERHEAD
from utils.distributed.context import DistributedContext

SIZE, BATCH = 32, 4


class Graphs:
    """A network whose calls share memory, as the CUDA graphs of torch.compile do."""

    def __init__(self, network: torch.nn.Module, **how: Any) -> None:
        assert how == {"mode": REDUCE_OVERHEAD, "dynamic": False}
        self.network = network
        self.handed_out: list[torch.Tensor] = []
        self.calls = self.steps_begun = 0
        self.addresses = self.find_addresses()
        for parameter in network.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: self.hand_out(p.grad))

    def find_addresses(self) -> list[int]:
        tensors = (*self.network.parameters(), *self.network.buffers())
        return [tensor.data_ptr() for tensor in tensors]

    def hand_out(self, tensor: torch.Tensor | None) -> None:
        assert tensor is not None
        self.handed_out.append(tensor)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        assert self.steps_begun == self.calls, "a call without cudagraph_mark_step_begin"
        assert self.find_addresses() == self.addresses
        for tensor in self.handed_out:
            tensor.detach().fill_(torch.nan)
        self.handed_out.clear()
        x = x.view_as(x)  # whose gradient is the graph's
        if x.requires_grad:
            x.register_hook(lambda gradient: self.hand_out(gradient))
        logits: torch.Tensor = self.network(x)
        self.hand_out(logits)
        return logits


def train(mode: bool | str, method: str, precision: str) -> dict[str, torch.Tensor]:
    """Two whole minibatches, a partial one, a whole one: all that a training keeps of them."""
    torch.manual_seed(0)
    model = ResNet("resnet18", 4, True, True, 10.0).train()
    config = merge({"TRAIN": {"lr": 0.01, "precision": precision}})
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    trainer = Trainer(
        model,
        make_optimizer(model, config, "cpu"),
        make_noise(BATCH, SIZE, "cpu"),
        TrainingSettings(0.1, 0.05, 2.0, precision, attack_steps=2),
        *make_networks(model, mode, DistributedContext(0, 1, torch.device("cpu"))),
        average,
    )
    norms = GradientNorms(model, trainer.loss, lambda _: None, None, trainer.scaler)
    sums = MetricSums("cpu")
    images, labels = torch.rand(BATCH, 3, SIZE, SIZE), torch.arange(BATCH)
    for n in (BATCH, BATCH, BATCH - 1, BATCH):
        hook = partial(norms.sample, images[:n], labels[:n], 1.0)
        loss, logits = TRAINING_STEP[method](trainer, images[:n], labels[:n], 1.0, hook)
        sums.update(loss, logits, labels[:n], n)
    kept = {"noise": trainer.noise, "norms": norms.sums, "sums": torch.tensor(sums.totals())}
    kept |= average.state_dict()
    momentum = trainer.optimizer.state_dict()["state"]
    kept |= {f"momentum {key}": state["momentum_buffer"] for key, state in momentum.items()}
    return {**kept, **model.state_dict(prefix="own.")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "precision"),
    [("free", "fp32"), ("free", "bf16"), ("fast", "fp32"), ("pgd", "fp32"), ("natural", "fp32")],
)
def test_no_step_reads_what_the_next_call_overwrites(
    method: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(False, method, precision)
    made: list[Graphs] = []

    def compile_(network: torch.nn.Module, **how: Any) -> Graphs:
        made.append(Graphs(network, **how))
        return made[-1]

    def begin_step() -> None:
        for graphs in made:
            graphs.steps_begun += 1

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", begin_step)
    found = train(REDUCE_OVERHEAD, method, precision)
    assert made[0].calls == 4 * {"fast": 2, "pgd": 3}.get(method, 1)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        ({"TRAIN__compile": REDUCE_OVERHEAD}, "TRAIN.compile reduce-overhead needs CUDA; set it"),
        ({"TRAIN__sync_bn": True}, "TRAIN.sync_bn needs CUDA; leave it out"),
    ],
    ids=str,
)
def test_what_needs_cuda_is_refused_without(
    change: dict[str, Any], mend: str, digits: Path, here: Path
) -> None:
    done = call("main_free.py", digits, "--device", "cpu", *settings(**change))
    assert mend in only_error(done)
    assert list(here.iterdir()) == []
