"""The suite on a pretended accelerator: no devices mix, and the host seldom waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pretended_device import DEVICE, DeviceMismatch, PretendedDevice, pretended_device
from torch import nn

from lib.algorithm.free_training import Trainer, TrainingSettings, free_step, make_noise
from lib.algorithm.gradient_norms import GradientNorms
from models.resnet import build_model

SIZE, CLASSES, BATCH = 32, 10, 4


@pytest.fixture
def device() -> Iterator[PretendedDevice]:
    with pretended_device() as device:
        yield device


# The device itself


def test_it_computes_and_logs_every_wait(device: PretendedDevice) -> None:
    x = torch.arange(6.0).view(2, 3).to(DEVICE, non_blocking=True)
    weight = nn.Parameter(torch.ones(3, device=DEVICE))
    loss = (x * weight).sum()
    loss.backward()
    assert device.synchronisations == []
    assert weight.grad.device == DEVICE
    for wait, expected in [
        (lambda: loss.item(), 15.0),
        (lambda: weight.grad.tolist(), [3.0, 5.0, 7.0]),
        (lambda: bool((x > 4).any()), True),
        (lambda: len(x[x > 3]), 2),
        (lambda: len(x[torch.tensor([0])]), 1),
        (lambda: torch.tensor([1.0], device=DEVICE).shape, (1,)),
    ]:
        value, waits = device.counted(wait)
        assert value == expected
        assert len(waits) == 1
        assert waits[0].where.startswith("tests/test_pretended_device.py:")


def test_devices_do_not_mix(device: PretendedDevice) -> None:
    x = torch.ones(3, device=DEVICE)
    assert (x * torch.tensor(2.0)).cpu().tolist() == [2.0] * 3
    with pytest.raises(DeviceMismatch, match="test_pretended_device"):
        x + torch.ones(3)


def test_afterwards_torch_is_as_before() -> None:
    before = torch.tensor, torch.autocast
    with pretended_device():
        pass
    assert (torch.tensor, torch.autocast) == before
    assert torch.ones(2, device="meta").is_meta


# The suite on it


def make_trainer(device: torch.device, hypersphere: bool) -> Trainer:
    torch.manual_seed(0)
    flags = {"feature_norm": True, "weight_norm": True, "scale": 10.0} if hypersphere else {}
    model = build_model("resnet18", CLASSES, **flags).double()
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    noise = make_noise(BATCH, SIZE, device, torch.float64)
    settings = TrainingSettings(8 / 255, 4 / 255, 2.0 if hypersphere else 0.0)
    return Trainer(model, optimizer, noise, settings)


def minibatch(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return images, torch.arange(n) % CLASSES


def sent(n: int, seed: int = 0) -> list[torch.Tensor]:
    return [tensor.to(DEVICE, non_blocking=True) for tensor in minibatch(n, seed)]


@pytest.mark.parametrize("hypersphere", [False, True], ids=["plain", "FN_WN"])
def test_free_steps(device: PretendedDevice, hypersphere: bool) -> None:
    """Whole and partial minibatches and the gradient hook: no wait, and the CPU's weights."""
    trainers = [make_trainer(where, hypersphere) for where in (torch.device("cpu"), DEVICE)]
    for trainer, send in zip(trainers, (minibatch, sent), strict=True):
        norms = GradientNorms(trainer.model, trainer.loss, lambda tensors: None)
        free_step(trainer, *send(BATCH))
        part = send(BATCH - 1, seed=1)

        def steps(trainer=trainer, part=part, norms=norms) -> None:
            free_step(trainer, *part)
            free_step(trainer, *part, 1.0, lambda: norms.sample(*part, 1.0))

        _, waits = device.counted(steps)
        assert waits == []
        assert norms.rows(1)[0][-1] == 1  # one sample
    cpu, pretended = (trainer.model.state_dict() for trainer in trainers)
    for key, value in pretended.items():
        torch.testing.assert_close(value.cpu(), cpu[key], rtol=1e-6, atol=1e-6, msg=key)
    torch.testing.assert_close(trainers[1].noise.cpu(), trainers[0].noise)
