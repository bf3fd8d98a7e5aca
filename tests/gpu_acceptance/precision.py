"""3. Lower precisions against the CPU's float32, and bytes as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lib.algorithm.free_training import free_step
from lib.algorithm.losses import ATTACK_LOSS
from lib.algorithm.pgd import attacking, loss_gradient
from lib.algorithm.precision import full_precision, precision_context, tf32_backends
from lib.data.datasets import Batch
from lib.data.to_device import to_device
from tests.gpu_acceptance.checks import Check, at_least, at_most, equal
from tests.gpu_acceptance.setting import (
    EPS,
    Setting,
    difference,
    minibatch,
    network,
    pixels,
    trainer_of,
)

MARGIN = 15.0  # of a confident image; its cross-entropy has a gradient below float16's smallest


def checks(setting: Setting) -> Iterator[Check]:
    """fp32 without and with TF32, bf16 and fp16 in training and search, uint8."""
    model, images = network(setting.arch, setting.crop), pixels(8, setting.crop)
    with torch.no_grad():
        expected = model.double()(images.double())
        model = model.float().to(setting.device).to(memory_format=torch.channels_last)
        x = images.to(setting.device, memory_format=torch.channels_last)
        with full_precision():
            yield at_most("fp32 logits, relative error", difference(model(x), expected), 1e-5)
        with all_tf32():
            yield at_most("TF32 logits, relative error", difference(model(x), expected), 1e-3)
    yield zero_gradients(model, x)
    for precision in setting.choose(("bf16", "fp16"), ("bf16", "fp16"), ("bf16",)):
        yield from trained(setting, precision)
    batch = every_byte()
    for dtype in (torch.float32, torch.float64):
        here, there = (to_device(batch, torch.device(d), dtype) for d in (setting.device, "cpu"))
        same = torch.equal(here.images.cpu(), there.images)
        yield equal(f"bytes as {dtype}, mirrored: the CPU's bits", same, True)


@contextmanager
def all_tf32() -> Iterator[None]:
    """TF32 in products, too."""
    before = [backend.allow_tf32 for backend in tf32_backends()]
    try:
        for backend in tf32_backends():
            backend.allow_tf32 = True
        yield
    finally:
        for backend, allowed in zip(tf32_backends(), before, strict=True):
            backend.allow_tf32 = allowed


def zero_gradients(model: torch.nn.Module, x: torch.Tensor) -> Check:
    """The share of pixels that a search in fp16 has no gradient for, at confident images."""
    with torch.no_grad():
        top = model(x).topk(2, dim=1)
    gain = (MARGIN / (top.values[:, 0] - top.values[:, 1])).unsqueeze(1)

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        with precision_context(images.device, "fp16"):
            logits = model(images)
        return logits.float() * gain

    with attacking(model):
        gradient, _ = loss_gradient(logits_of, x, top.indices[:, 0], ATTACK_LOSS["ce"])
    share = (gradient == 0).float().mean().item()
    return at_most(f"fp16 search at margin {MARGIN:g}, share without gradient", share, 0.01)


def trained(setting: Setting, precision: str) -> Iterator[Check]:
    """Free steps: finite, the noise within its ball."""
    batch, size = 8, setting.crop
    model = network(setting.arch, size, hypersphere=True)
    trainer = trainer_of(model, setting.device, batch, size, precision=precision)
    images, labels, _ = minibatch(batch, size, setting.device)
    losses = torch.stack([free_step(trainer, images, labels)[0] for _ in range(6)])
    finite = all(bool(p.isfinite().all()) for p in model.parameters())
    yield equal(f"{precision} training is finite", finite and bool(losses.isfinite().all()), True)
    largest = trainer.noise.abs().max().item()
    yield at_most(f"{precision} noise, largest size", largest, EPS * (1 + 1e-6))
    yield at_least(f"{precision} noise, largest", trainer.noise.max().item(), EPS * (1 - 1e-6))


def every_byte() -> Batch:
    """Two images that hold every value, one to be mirrored."""
    values = torch.arange(2 * 3 * 16 * 16).remainder(256).to(torch.uint8)
    flips = torch.tensor([False, True])
    labels = torch.zeros(2, dtype=torch.int64)
    return Batch(values.view(2, 16, 16, 3).permute(0, 3, 1, 2), labels, torch.arange(2), flips)
