"""6. Outcomes do not depend on how many images are attacked at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.pgd import attacking
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.protocols import PGDSpec, ThreatModel
from models.resnet import ResNet
from tests.gpu_acceptance.checks import Check, at_least, at_most, equal
from tests.gpu_acceptance.setting import Setting, network, pixels

SIZES = (1, 7, 256)
STEPS = 3
RADII = [2.0**-power / 255 for power in range(-2, 10)]


def checks(setting: Setting) -> Iterator[Check]:
    """Flips between batch sizes at a radius where some images are robust, in every precision."""
    count = setting.choose(1024, 256, 12)
    model = network("resnet18", setting.crop, hypersphere=True).to(setting.device)
    model = model.to(memory_format=torch.channels_last)
    images = pixels(count, setting.crop, seed=3).to(setting.device)
    with torch.no_grad():
        labels = torch.cat([model(part).argmax(1) for part in images.split(256)])
    batch = DeviceBatch(images, labels, torch.arange(count, device=setting.device))
    eps = next(eps for eps in RADII if robust_images(model, batch, eps, 256).float().mean() > 0.3)
    tuning: set[bool] = set()

    def note_tuning(*_: object) -> None:
        tuning.add(torch.backends.cudnn.benchmark)

    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        with model.register_forward_pre_hook(note_tuning):
            found = [robust_images(model, batch, eps, size) for size in SIZES]
            low = robust_images(model, batch, eps, 256, "bf16")
    finally:
        torch.backends.cudnn.benchmark = before
    yield equal("cudnn.benchmark inside", tuning, {False})
    robust = found[-1].float().mean().item()
    yield at_least(f"images that are not robust at eps {eps * 255:g}/255", 1 - robust, 0.05)
    for size, other in zip(SIZES, found[:-1], strict=False):
        flips = (found[-1] != other).float().mean().item()
        yield at_most(f"flips of {count} outcomes, batch {size} and {SIZES[-1]}", flips, 1e-3)
    # A search in low precision finds less or other images; every one it finds is judged in fp32.
    away = abs(low.float().mean().item() - robust)
    yield at_most("robust share in bf16, away from fp32's", away, 0.05)


def robust_images(
    model: ResNet, batch: DeviceBatch, eps: float, size: int, precision: str = "fp32"
) -> torch.Tensor:
    """(B,) bool on the CPU, by index."""
    parts = zip(*(field.split(size) for field in batch), strict=True)
    threat = ThreatModel(eps, precision=precision)
    attack = PGDAttack(model, PGDSpec(STEPS, eps / STEPS), threat)
    with attacking(model):
        outcomes = list(attack.run(DeviceBatch(*part) for part in parts))
    order = torch.cat([outcome.indices for outcome in outcomes]).argsort()
    return torch.cat([outcome.robust for outcome in outcomes])[order].cpu()
