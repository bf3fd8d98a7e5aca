"""2. Float64: the published traces, and every protocol's outcomes, as the CPU has them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.pgd import attacking
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.protocols import PROTOCOLS, PGDSpec, ThreatModel
from tests.golden_replay import TOLERANCE, TRACES, comparisons, relative_error
from tests.gpu_acceptance.checks import Check, at_most, equal
from tests.gpu_acceptance.setting import STEP, Setting, network, pixels


def checks(setting: Setting) -> Iterator[Check]:
    """Free steps, FN and WN, fast; three protocols."""
    for path in setting.choose(TRACES, TRACES, TRACES[-1:]):
        errors = {
            what: relative_error(found, recorded)
            for what, found, recorded in comparisons(path, setting.device)
        }
        worst = max(errors, key=lambda what: errors[what])
        yield at_most(f"{path.stem}: relative error of {worst}", errors[worst], TOLERANCE)
    for protocol in setting.choose([*PROTOCOLS], [*PROTOCOLS], ["standard"]):
        here, there = (attacked(protocol, device) for device in (setting.device, "cpu"))
        yield equal(f"{protocol}: robust images", here[0], there[0])
        change = (here[1] - there[1]).abs().max().item()
        yield at_most(f"{protocol}: attacked pixels", change, TOLERANCE)


def attacked(protocol: str, device: torch.device | str) -> tuple[list[bool], torch.Tensor]:
    """PGD-2 with two restarts on 6 images, three at a time: robustness, and where it ended."""
    model = network("resnet18", 32, hypersphere=True).double()
    images = pixels(6, 32, seed=2).double()
    with torch.no_grad():
        labels = model(images).argmax(1)
    model = model.to(device)
    parts = zip(*(f.to(device).split(3) for f in (images, labels, torch.arange(6))), strict=True)
    threat = ThreatModel(STEP / 2, PROTOCOLS[protocol])
    attack = PGDAttack(model, PGDSpec(2, STEP / 3, restarts=2), threat)
    with attacking(model):
        outcomes = list(attack.run(DeviceBatch(*part) for part in parts))
    order = torch.cat([outcome.indices for outcome in outcomes]).argsort()
    robust = torch.cat([outcome.robust for outcome in outcomes])[order].tolist()
    return robust, torch.cat([outcome.adversarial for outcome in outcomes])[order].cpu()
