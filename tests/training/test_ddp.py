"""Training under DistributedDataParallel, plain, in bf16 and compiled, on gloo processes."""

from __future__ import annotations

import inspect
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import gang
from torch.nn.parallel import DistributedDataParallel

from lib.algorithm.free_training import Trainer, TrainingSettings, free_step, make_noise
from lib.training.assembly import make_networks, make_optimizer
from models.resnet import build_model
from utils.config.merge import merge
from utils.config.schema import Config
from utils.distributed.context import DistributedContext

ALONE = DistributedContext(0, 1, torch.device("cpu"))


def train(context: DistributedContext, config: Config) -> dict[str, Any]:
    """Two free steps of a network with 1 x 1 convolutions, as DDP's buckets are about them."""
    torch.manual_seed(0)
    model = build_model(config.TRAIN.arch, 4).to(memory_format=torch.channels_last).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # statistics of a share would be another loss
    optimizer = make_optimizer(model, config, "cpu")
    settings = TrainingSettings(0.1, 0.05, precision=config.TRAIN.precision)
    noise = make_noise(4 // context.world_size, 32, "cpu")
    networks = make_networks(model, config.TRAIN.compile, context)
    trainer = Trainer(model, optimizer, noise, settings, *networks)
    images = torch.rand(4, 3, 32, 32)[context.rank :: context.world_size]
    labels = torch.arange(4)[context.rank :: context.world_size]
    with tempfile.TemporaryFile() as stderr, warnings.catch_warnings():
        warnings.filterwarnings("error", ".*strides do not match.*")
        kept = os.dup(2)
        os.dup2(stderr.fileno(), 2)  # C++ writes its warnings there, past Python
        for _ in range(2):
            free_step(trainer, images.contiguous(memory_format=torch.channels_last), labels)
        os.dup2(kept, 2)
        stderr.seek(0)
        said = stderr.read().decode()
    parameters = dict(model.named_parameters())
    return {
        "said": said,
        "other strides": [n for n, p in parameters.items() if p.grad.stride() != p.stride()],
        "weights": {name: p.detach().numpy() for name, p in parameters.items()},
        "noise": noise.numpy(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"precision": "bf16"}, {"compile": True}], ids=str)
def test_two_processes_train_like_one(change: dict[str, Any], tmp_path: Path) -> None:
    arch = "resnet18" if "compile" in change else "resnet50"
    config = merge({"TRAIN": {"lr": 1e-3, "arch": arch, **change}})
    alone = train(ALONE, merge({"TRAIN": {"lr": 1e-3, "arch": arch, **change, "compile": False}}))
    found = gang(2, train, config, folder=tmp_path)
    for one in found:
        assert "strides do not match" not in one["said"]
        assert one["other strides"] == []
    low = config.TRAIN.precision == "bf16"
    for name, value in alone["weights"].items():
        assert (found[0]["weights"][name] == found[1]["weights"][name]).all(), name
        mine = found[0]["weights"][name]  # pytest.approx takes minutes for 25 million numbers
        np.testing.assert_allclose(mine, value, rtol=1e-3, atol=5e-3 if low else 1e-5, err_msg=name)


def no_copies_of_buffers(context: DistributedContext) -> bool:
    """Whether a forward pass leaves running statistics as they are, on every process."""
    model = build_model("resnet18", 4).train()
    network, _ = make_networks(model, False, context)
    assert isinstance(network, DistributedDataParallel)
    model.bn1.running_mean.fill_(context.rank)
    with torch.no_grad():
        network(torch.rand(2, 3, 32, 32))
    own = bool((model.bn1.running_mean.round() == context.rank).all())
    context.copy_from_main_(model.buffers())
    return own and bool((model.bn1.running_mean.round() == 0).all())


def test_statistics_are_copied_where_they_are_read_alone(tmp_path: Path) -> None:
    assert gang(2, no_copies_of_buffers, folder=tmp_path) == [True, True]
    names = inspect.signature(DistributedDataParallel).parameters
    assert {"forward_sync_buffers", "broadcast_buffers"} & set(names)
