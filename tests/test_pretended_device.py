"""The suite on a pretended accelerator: no devices mix, and the host seldom waits."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pgd_attack import DeviceBatch, PGDAttack
from lib.algorithm.protocols import PROTOCOLS, PGDSpec, ThreatModel
from lib.algorithm.training import free_step
from models.hypersphere import HypersphereHead
from tests.commands import settings
from tests.gpu.scale import CPU, Scale, minibatch, network, trainer_of
from tests.in_process import call
from tests.pretended_device import DEVICE, DeviceMismatch, PretendedDevice, pretended_device

PRETENDED = Scale(DEVICE, CPU.arch, CPU.size)


@pytest.fixture
def device() -> Iterator[PretendedDevice]:
    with pretended_device() as device:
        yield device


def test_it_computes_logs_every_wait_and_does_not_mix(device: PretendedDevice) -> None:
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
    assert (weight * torch.tensor(2.0)).tolist() == [2.0] * 3
    with pytest.raises(DeviceMismatch, match="test_pretended_device"):
        weight + torch.ones(3)


def test_free_steps(device: PretendedDevice) -> None:
    """Whole and partial minibatches and the gradient hook: no wait, and the CPU's loss."""
    losses = []
    for scale in (CPU, PRETENDED):
        trainer = trainer_of(network(scale.arch, scale.size, True), 4, scale)
        norms = GradientNorms(trainer, lambda tensors: None)
        images, labels, _ = minibatch(4, scale)

        def steps(trainer=trainer, norms=norms, x=images, y=labels) -> torch.Tensor:
            loss, _ = free_step(trainer, x, y)
            free_step(trainer, x[:3], y[:3])
            free_step(trainer, x, y, 1.0, lambda: norms.sample(x, y, 1.0))
            return loss

        loss, waits = device.counted(steps)
        losses.append(loss.cpu())
        assert waits == []
        assert norms.rows(1)[0][-1] == 1  # one sample
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)


class SmallNet(nn.Sequential):
    """A convolution and a hypersphere head."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        head = HypersphereHead(16 * 4 * 4, 10, feature_norm=True, weight_norm=True)
        super().__init__(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.Flatten(), head)
        self.double()


def attacked(
    device: PretendedDevice, scale: Scale, spec: PGDSpec, threat: ThreatModel
) -> tuple[dict[int, tuple], int, int]:
    """Outcomes of 12 images by index, four at a time; the numbers of waits and of steps."""
    images, _, indices = minibatch(12, CPU)
    with torch.no_grad():
        batch = DeviceBatch(images.double(), SmallNet()(images.double()).argmax(1), indices + 7)
    fields = (field.to(scale.device, non_blocking=True).split(4) for field in batch)
    batches = [DeviceBatch(*part) for part in zip(*fields, strict=True)]
    attack = PGDAttack(SmallNet().to(scale.device), spec, threat)
    search, steps = attack.search_logits, []
    attack.search_logits = lambda x: (steps.append(1), search(x))[1]
    with frozen_eval(attack.model):
        outcomes, waits = device.counted(lambda: list(attack.run(batches)))
    rows = (zip(*(field.cpu().unbind() for field in o), strict=True) for o in outcomes)
    return {int(index): row for part in rows for index, *row in part}, len(waits), len(steps)


@pytest.mark.parametrize(("protocol", "most"), [("standard", 1), ("freeat", 0), ("paper", 0)])
def test_a_step_of_pgd_seldom_waits(device: PretendedDevice, protocol: str, most: int) -> None:
    """While no image is misclassified."""
    threat = ThreatModel(0.0, PROTOCOLS[protocol])
    few, many = (attacked(device, PRETENDED, PGDSpec(n, 0.01), threat)[1] for n in (2, 12))
    assert (many - few) / 10 / 3 <= most  # three batches


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # one is judged again in full
def test_the_pool_ends_as_on_the_cpu(device: PretendedDevice, precision: str) -> None:
    """And a step waits three times while images are misclassified, replaced and started anew."""
    arguments = PGDSpec(4, 1 / 255, restarts=2), ThreatModel(1 / 255, precision=precision)
    found, waits, steps = attacked(device, PRETENDED, *arguments)
    assert {bool(row[0]) for row in found.values()} == {False, True}
    assert waits - 3 <= 3 * steps  # a batch's indices are read once
    if precision == "fp32":  # the one that is pretended
        torch.testing.assert_close(found, attacked(device, CPU, *arguments)[0])


@pytest.mark.slow
def test_training_resuming_and_evaluation(
    device: PretendedDevice, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard, gradient norms, state saved and restored, attacks, ImageNet-C, images."""
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.distributed.context.choose_device", lambda *_: DEVICE)
    (tmp_path / "corrupted/fog").mkdir(parents=True)
    for severity in range(1, 6):
        (tmp_path / f"corrupted/fog/{severity}").symlink_to(digits / "val")
    words = [digits, "--FN", "True", "--WN", "True", "--tensorboard", "--print_gradients"]
    changes = {"ADV__n_repeats": 1, "DATA__batch_size": 32}
    words += settings(TRAIN__select="pgd", TRAIN__select_examples=8, **changes)
    for epochs in (1, 2):
        more = ("--set", f"TRAIN.epochs={epochs}", "--resume", "auto")
        assert call("main_free.py", *words, *more).status == 0
    (folder,) = Path("trained_models").iterdir()
    done = call(
        *("evaluate.py", digits, "-e", "--eva_on_imagenet_c", "--corruptions", "fog"),
        *("--attack", "pgd2,pgd2-margin-r2", "--save_images", 2, "--n_examples", 6),
        *("--resume", folder / "model_best.pth.tar", *settings()),
        *("--set", f"DATA.imagenet_c={tmp_path / 'corrupted'}"),
    )
    assert done.status == 0, done
    assert list(folder.glob("imagenet_c*.json"))
    waits = [wait.where for wait in device.synchronisations]
    of_folders = [where for where in waits if where.startswith("lib/evaluation/shift.py")]
    assert 5 <= len(of_folders) <= 2 * 5  # one a folder or so
    assert not any(where.startswith("lib/algorithm/training.py") for where in waits)
    assert list(folder.glob("attack*_images/*.png"))
