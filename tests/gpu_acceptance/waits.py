"""4. How often the host waits for the device in training and in attacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice

import torch

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.free_training import free_step
from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.pgd import attacking, pgd
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.protocols import PROTOCOLS, PGDSpec, ThreatModel
from tests.gpu_acceptance.checks import Check, at_most, holds
from tests.gpu_acceptance.setting import EPS, STEP, Setting, minibatch, network, trainer_of

Places = list[str]  # file:line of every time that the host has waited
Watch = Callable[[Callable[[], object]], Places]
BATCH = 8


def checks(setting: Setting) -> Iterator[Check]:
    """Free steps and PGD steps never; the pool three times a step."""
    with watching(setting.device) as (device, waits):
        for name in setting.choose(("", "FN_WN"), ("", "FN_WN"), ("FN_WN",)):
            yield from free_steps(setting, device, waits, name)
        for protocol in ("freeat", "paper"):
            yield pgd_steps(setting, device, waits, protocol)
        yield pool_steps(setting, device, waits)


@contextmanager
def watching(device: torch.device) -> Iterator[tuple[torch.device, Watch]]:
    """A device and what logs the waits of some work on it: in CUDA's stead a pretended one."""
    if device.type == "cuda":
        yield device, waits_on_cuda
        return
    from tests.pretended_device import DEVICE, pretended_device

    with pretended_device() as pretended:
        yield DEVICE, lambda work: [wait.where for wait in pretended.counted(work)[1]]


def waits_on_cuda(work: Callable[[], object]) -> Places:
    """As PyTorch sees them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    ours = (w for w in caught if "called a synchronizing CUDA operation" in str(w.message))
    return [f"{warning.filename}:{warning.lineno}" for warning in ours]


def never(name: str, places: Places) -> Check:
    """Work in which the host does not wait."""
    return holds(name, places or 0, not places, "== 0")


def free_steps(setting: Setting, device: torch.device, waits: Watch, name: str) -> Iterator[Check]:
    """Whole and partial minibatches, and the gradient hook, after one of each."""
    size = setting.crop
    trainer = trainer_of(network(setting.arch, size, bool(name)), device, BATCH, size)
    norms = GradientNorms(trainer.model, trainer.loss, lambda _: None)
    images, labels, _ = minibatch(BATCH, size, device)

    def step(n: int, hook: bool = False) -> object:
        x, y = images[:n], labels[:n]
        sample = (lambda: norms.sample(x, y, 1.0)) if hook else None
        return free_step(trainer, x, y, 1.0, sample)

    for what, n, hook in (
        ("free step", BATCH, False),
        ("free step, partial minibatch", BATCH - 3, False),
        ("free step with gradient norms", BATCH, True),
    ):
        step(n, hook)
        yield never(f"waits in a {what} {name}".strip(), waits(partial(step, n, hook)))


def make_attack(
    setting: Setting, device: torch.device, protocol: str, eps: float, precision: str
) -> PGDAttack:
    """PGD-5 on a network on the device."""
    model = network(setting.arch, setting.crop, hypersphere=True).to(device)
    threat = ThreatModel(eps, PROTOCOLS[protocol], precision=precision)
    return PGDAttack(model.to(memory_format=torch.channels_last), PGDSpec(5, STEP), threat)


def pgd_steps(setting: Setting, device: torch.device, waits: Watch, protocol: str) -> Check:
    """Steps after the first."""
    attack = make_attack(setting, device, protocol, EPS, "fp32")
    images, labels, _ = minibatch(BATCH, setting.crop, device)
    with attacking(attack.model):
        steps = pgd(
            attack.search_logits,
            images,
            labels,
            torch.zeros_like(images),
            steps=5,
            step_size=STEP,
            eps=EPS,
            ball_around_start=attack.threat.protocol.ball_around_start,
        )
        next(steps)
        places = waits(lambda: list(islice(steps, 3)))
    return never(f"waits in three steps of PGD, {protocol}", places)


def pool_steps(setting: Setting, device: torch.device, waits: Watch) -> Check:
    """While images are misclassified, judged in full precision, and replaced by others."""
    attack = make_attack(setting, device, "standard", STEP / 4, "bf16")
    images, _, indices = minibatch(4 * BATCH, setting.crop, device)
    labels = attack.predict_full_precision(images).argmax(1)
    steps, step = [], attack.ascend

    def ascend(*arguments: torch.Tensor) -> object:
        steps.append(len(arguments[0]))
        return step(*arguments)

    attack.ascend = ascend  # type: ignore[method-assign,assignment]
    parts = zip(*(field.split(BATCH) for field in (images, labels, indices)), strict=True)
    batches = [DeviceBatch(*part) for part in parts]
    outcomes: list[torch.Tensor] = []
    with attacking(attack.model):
        places = waits(lambda: outcomes.extend(o.robust for o in attack.run(batches)))
    robust = torch.cat(outcomes).float().mean().item()
    name = f"waits a step of the pool, {robust:.0%} of its images being robust"
    return at_most(name, (len(places) - len(batches)) / len(steps), 3)
