"""The suite on a pretended accelerator: no devices mix, and the host seldom waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import settings
from in_process import call
from pretended_device import DEVICE, DeviceMismatch, PretendedDevice, pretended_device
from torch import nn

from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.pool import DeviceBatch
from lib.algorithm.protocols import PROTOCOLS, AutoAttackSpec, PGDSpec, ThreatModel
from lib.algorithm.training import Trainer, TrainingSettings, free_step, make_noise
from lib.evaluation.autoattack import AutoAttack
from lib.evaluation.folder_counts import count_images, top1_and_top5
from lib.evaluation.validation import clean_rows
from models.hypersphere import HypersphereHead
from models.resnet import ResNet

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


def make_trainer(device: torch.device, hypersphere: bool, dtype: torch.dtype) -> Trainer:
    torch.manual_seed(0)
    flags = {"feature_norm": True, "weight_norm": True, "scale": 10.0} if hypersphere else {}
    model = ResNet("resnet18", CLASSES, **flags).to(dtype)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    noise = make_noise(BATCH, SIZE, device, dtype)
    settings = TrainingSettings(8 / 255, 4 / 255, 2.0 if hypersphere else 0.0)
    return Trainer(model, optimizer, noise, settings)


def minibatch(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return images, torch.arange(n) % CLASSES


@pytest.mark.parametrize(
    ("hypersphere", "dtype"),
    [
        pytest.param(False, torch.float64, marks=pytest.mark.slow),
        pytest.param(True, torch.float64, marks=pytest.mark.slow),
        (True, torch.float32),
    ],
    ids=str,
)
def test_free_steps(device: PretendedDevice, hypersphere: bool, dtype: torch.dtype) -> None:
    """Whole and partial minibatches and the gradient hook: no wait, and the CPU's weights.

    Three steps in fp32 amplify what the first convolution rounds otherwise: their losses before
    that are compared.
    """
    trainers = [make_trainer(where, hypersphere, dtype) for where in (torch.device("cpu"), DEVICE)]
    losses = []
    for trainer in trainers:

        def send(n: int, seed: int = 0, where=trainer.noise.device) -> list[torch.Tensor]:
            images, labels = minibatch(n, seed)
            return [t.to(where, non_blocking=True) for t in (images.to(dtype), labels)]

        norms = GradientNorms(trainer.model, trainer.loss, lambda tensors: None)
        losses.append(free_step(trainer, *send(BATCH))[0].cpu())
        part = send(BATCH - 1, seed=1)

        def steps(trainer=trainer, part=part, norms=norms) -> None:
            free_step(trainer, *part)
            free_step(trainer, *part, 1.0, lambda: norms.sample(*part, 1.0))

        _, waits = device.counted(steps)
        assert waits == []
        assert norms.rows(1)[0][-1] == 1  # one sample
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    if dtype == torch.float64:
        cpu, pretended = (trainer.model.state_dict() for trainer in trainers)
        for key, value in pretended.items():
            torch.testing.assert_close(value.cpu(), cpu[key], rtol=1e-6, atol=1e-6, msg=key)
        torch.testing.assert_close(trainers[1].noise.cpu(), trainers[0].noise)


# Attacks


class SmallNet(nn.Module):
    """A convolution and a hypersphere head."""

    scale = 10.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 8, stride=8)
        self.fc = HypersphereHead(16 * 4 * 4, CLASSES, feature_norm=True, weight_norm=True)

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().flatten(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.outputs(x)


def classified(n: int) -> DeviceBatch:
    """Images of the CPU, labelled as `SmallNet` classifies them."""
    images, _ = minibatch(n)
    with torch.no_grad():
        return DeviceBatch(images, SmallNet().double()(images).argmax(1), torch.arange(n) + 7)


def attacked(
    where: torch.device, protocol: str, *, steps: int, restarts: int = 1, eps: float = 2
) -> dict[int, tuple]:
    """Outcomes of 7 images by index, three at a time; eps in 255ths."""
    model = SmallNet().double().to(where)
    parts = zip(*(field.split(3) for field in classified(7)), strict=True)
    batches = [
        DeviceBatch(*(field.to(where, non_blocking=True) for field in part)) for part in parts
    ]
    spec = PGDSpec(steps, 3 / 255, restarts=restarts)
    attack = PGDAttack(model, spec, ThreatModel(eps / 255, PROTOCOLS[protocol]))
    with frozen_eval(model):
        outcomes = list(attack.run(batches))
    return {
        int(i): row
        for outcome in outcomes
        for i, *row in zip(*(field.cpu().unbind() for field in outcome), strict=True)
    }


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_attacks_end_as_on_the_cpu(device: PretendedDevice, protocol: str, restarts: int) -> None:
    cpu, pretended = (
        attacked(where, protocol, steps=3, restarts=restarts)
        for where in (torch.device("cpu"), DEVICE)
    )
    assert sorted(cpu) == sorted(pretended) == list(range(7, 14))
    assert {bool(robust) for robust, *_ in cpu.values()} == {False, True}
    for index, row in cpu.items():
        torch.testing.assert_close(pretended[index], row)


def waits_of_a_step(device: PretendedDevice, protocol: str) -> float:
    """Synchronisations that one more step of PGD costs, while no image is misclassified."""
    few, many = (
        len(device.counted(lambda n=n: attacked(DEVICE, protocol, steps=n, eps=0))[1])
        for n in (2, 12)
    )
    return (many - few) / 10 / 3  # three batches


@pytest.mark.parametrize(("protocol", "most"), [("standard", 1), ("freeat", 0), ("paper", 0)])
def test_a_step_of_pgd_seldom_waits(device: PretendedDevice, protocol: str, most: int) -> None:
    assert waits_of_a_step(device, protocol) <= most


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # one is judged again in full
def test_a_step_of_the_pool_waits_three_times(device: PretendedDevice, precision: str) -> None:
    """While images are misclassified, replaced and started anew."""
    model, n = SmallNet().double().to(DEVICE), 12
    parts = zip(*(field.split(4) for field in classified(n)), strict=True)
    batches = [DeviceBatch(*(f.to(DEVICE, non_blocking=True) for f in part)) for part in parts]
    threat = ThreatModel(1 / 255, PROTOCOLS["standard"], precision=precision)
    attack, steps = PGDAttack(model, PGDSpec(4, 1 / 255, restarts=2), threat), []
    step = attack.ascend
    attack.ascend = lambda *tensors: (steps.append(len(tensors[0])), step(*tensors))[1]
    with frozen_eval(model):
        outcomes, waits = device.counted(lambda: list(attack.run(batches)))
    robust = torch.cat([outcome.robust for outcome in outcomes]).cpu()
    assert 0 < int(robust.sum()) < n
    assert len(waits) - len(batches) <= 3 * len(steps)  # a batch's indices are read once


@pytest.mark.slow
@pytest.mark.parametrize(
    ("eps", "spec", "robust"),
    [(8, AutoAttackSpec(), {False}), (1, AutoAttackSpec(stages=("apgd-ce",)), {False, True})],
    ids=["nothing robust", "some robust"],
)
def test_autoattack_ends_as_on_the_cpu(
    device: PretendedDevice, eps: int, spec: AutoAttackSpec, robust: set[bool]
) -> None:
    """In channels_last too, though the package takes views of the gradients."""
    pytest.importorskip("pyautoattack")
    batch = classified(6)
    found = []
    for where in (torch.device("cpu"), DEVICE):
        model = SmallNet().to(where).to(memory_format=torch.channels_last)
        sent = DeviceBatch(batch.images.float().to(where), *(f.to(where) for f in batch[1:]))
        with frozen_eval(model):
            attack = AutoAttack(model, spec, ThreatModel(eps / 255))
            (outcome,) = attack.run([sent])
        found.append([field.cpu() for field in outcome])
    assert set(found[0][1].tolist()) == robust
    torch.testing.assert_close(found[1], found[0])


# Whole commands


def test_clean_rows(device: PretendedDevice) -> None:
    """One wait for each column of a batch's rows."""
    batches = [DeviceBatch(*minibatch(n, seed=n), torch.arange(n)) for n in (4, 3)]
    on_device = [DeviceBatch(*(field.to(DEVICE) for field in batch)) for batch in batches]
    model = SmallNet().double().to(DEVICE)
    rows, waits = device.counted(lambda: list(clean_rows(model, on_device)))
    for row, expected in zip(rows, clean_rows(SmallNet().double(), batches), strict=True):
        assert {i: r[:3] for i, r in row.items()} == {i: r[:3] for i, r in expected.items()}
    assert len(waits) <= 5 * len(batches)


def test_counts_of_folders(device: PretendedDevice) -> None:
    """The CPU's; they are read once a folder."""
    batches = [DeviceBatch(*minibatch(n, seed=n), torch.arange(n)) for n in (4, 3)]
    on_device = [DeviceBatch(*(field.to(DEVICE) for field in batch)) for batch in batches]
    model = SmallNet().double().to(DEVICE)
    counts, waits = device.counted(lambda: count_images(model, on_device, "fog", top1_and_top5))
    assert counts == count_images(SmallNet().double(), batches, "fog", top1_and_top5)
    assert counts[-1] == 7
    assert counts[0] > 0
    assert len(waits) == 1


def waits_in(device: PretendedDevice, path: str) -> int:
    """How often the host has waited in files of some path."""
    return sum(wait.where.startswith(path) for wait in device.synchronisations)


@pytest.mark.slow
def test_training_resuming_and_evaluation(
    device: PretendedDevice, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard, gradient norms, state saved and restored, attacks, ImageNet-C, images."""
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.distributed.context.choose_device", lambda *_: DEVICE)
    corrupted = tmp_path / "corrupted" / "fog"
    corrupted.mkdir(parents=True)
    for severity in range(1, 6):
        (corrupted / str(severity)).symlink_to(digits / "val")
    words = [digits, "--FN", "True", "--WN", "True", "--tensorboard", "--print_gradients"]
    changes = {"ADV__n_repeats": 1, "DATA__batch_size": 32}
    words += settings(TRAIN__select="pgd", TRAIN__select_examples=8, **changes)
    for epochs in (1, 2):
        more = ("--set", f"TRAIN.epochs={epochs}", "--resume", "auto")
        assert call("main_free.py", *words, *more).status == 0
    (folder,) = Path("trained_models").iterdir()
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    state = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    assert state["training"]["noise"].abs().max() > 0
    assert sum(path.stat().st_size for path in folder.glob("tensorboard/events*")) > 10_000
    done = call(
        *("evaluate.py", digits, "-e", "--eva_on_imagenet_c", "--corruptions", "fog"),
        *("--attack", "pgd2,pgd2-margin-r2", "--save_images", 2, "--n_examples", 6),
        *("--resume", folder / "model_best.pth.tar", *settings()),
        *("--set", f"DATA.imagenet_c={corrupted.parent}"),
    )
    assert done.status == 0, done
    assert list(folder.glob("imagenet_c*.json"))
    assert 5 <= waits_in(device, "lib/evaluation/folder_counts.py") <= 2 * 5  # one a folder or so
    assert waits_in(device, "lib/algorithm/training.py") == 0
    assert list(folder.glob("attack*_images/*.png"))
