"""Training steps of one of several processes, and what is to be compared of them."""

import os
import tempfile
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import distributed
from torch._dynamo.utils import counters

from lib.algorithm.metrics import full_precision
from lib.algorithm.training import Trainer, TrainingSettings, free_step, make_noise
from lib.training.setup import make_networks, make_optimizer
from models.resnet import ResNet
from utils.compiling import compile_mode
from utils.config.settings import Config
from utils.distributed.context import DistributedContext

BATCH, SIZE = 4, 32


def strides(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    """How a tensor lies in memory."""
    return None if tensor is None else tensor.stride()


def train_two_steps(context: DistributedContext, config: Config) -> dict[str, Any]:
    """Two free steps of a network with 1 x 1 convolutions, as DDP's buckets are about them.

    Returns:
        What was written on stderr, parameters whose gradients lie otherwise in memory than
        themselves, the number of compilations, weights and noise.
    """
    torch.manual_seed(0)
    device = context.device
    model = ResNet(config.TRAIN.arch, BATCH).to(memory_format=torch.channels_last).train()
    model = model.to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # statistics of a share would be another loss
    optimizer = make_optimizer(model, config, device.type)
    settings = TrainingSettings(0.1, 0.05, precision=config.TRAIN.precision)
    noise = make_noise(BATCH // context.world_size, SIZE, device)
    # In a group of one, too, which the suite does without.
    wraps = replace(context, world_size=max(2, context.world_size))
    grouped = distributed.is_initialized()
    mode = compile_mode(config.TRAIN.compile, device, steps=0)
    networks = make_networks(model, mode, len(noise), wraps if grouped else context)
    trainer = Trainer(model, optimizer, noise, settings, *networks)
    share = slice(context.rank, None, context.world_size)
    images = torch.rand(BATCH, 3, SIZE, SIZE)[share].to(device, memory_format=torch.channels_last)
    labels = torch.arange(BATCH)[share].to(device)
    counters.clear()
    with tempfile.TemporaryFile() as stderr, warnings.catch_warnings():
        warnings.filterwarnings("error", ".*strides do not match.*")
        warnings.filterwarnings("ignore", ".*TensorFloat32.*")  # torch.compile recommends it
        kept = os.dup(2)
        os.dup2(stderr.fileno(), 2)  # C++ writes its warnings there, past Python
        with full_precision():  # TF32 would round whole batches and shares differently
            for _ in range(2):
                free_step(trainer, images, labels)
        os.dup2(kept, 2)
        stderr.seek(0)
        said = stderr.read().decode()
    parameters = dict(model.named_parameters())
    return {
        "said": said,
        "other strides": [n for n, p in parameters.items() if strides(p.grad) != strides(p)],
        "compilations": counters["stats"]["unique_graphs"],
        "weights": {name: p.detach().cpu().numpy() for name, p in parameters.items()},
        "noise": noise.cpu().numpy(),
    }
