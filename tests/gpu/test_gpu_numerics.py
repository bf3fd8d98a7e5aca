"""What a GPU computes: traces, precisions, attacks; and whether the host waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.losses import ce_loss
from lib.algorithm.metrics import full_precision, precision_context
from lib.algorithm.pgd import Search, frozen_eval, loss_gradient, pgd
from lib.algorithm.pgd_attack import DeviceBatch, PGDAttack
from lib.algorithm.protocols import AutoAttackSpec, PGDSpec, ThreatModel
from lib.algorithm.training import free_step
from lib.evaluation.autoattack import AutoAttack
from models.resnet import ResNet
from tests.golden_replay import TOLERANCE, TRACES, comparisons, relative_error
from tests.gpu.scale import (
    EPS,
    STEP,
    Scale,
    checked,
    difference,
    minibatch,
    network,
    pixels,
    trainer_of,
)
from utils.compiling import recorded

MARGIN = 15.0  # of a confident image; its cross-entropy has a gradient below float16's smallest
RADII = [2.0**-power / 255 for power in range(-2, 10)]


@checked(quick=True, cpu=False)  # there it is a test of its own
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_golden_traces(path: Path, scale: Scale) -> None:
    for name, found, expected in comparisons(path, scale.device):
        assert relative_error(found, expected) <= TOLERANCE, name


@checked(quick=True)
def test_precisions(scale: Scale) -> None:
    """fp32 against float64, TF32 against bf16; a search in fp16 has gradients."""
    model, images = network(scale.arch, scale.size), pixels(8, scale.size)
    with torch.no_grad():
        expected = model.double()(images.double())
        model = model.float().to(scale.device, memory_format=torch.channels_last)
        x = images.to(scale.device, memory_format=torch.channels_last)
        with full_precision():
            assert difference(model(x), expected) <= 1e-4
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            rounded = difference(model(x), expected)
        with precision_context(scale.device, "bf16"):
            assert rounded <= difference(model(x), expected)
        with precision_context(scale.device, "fp16" if scale.cuda else "bf16"):
            top = model(x).float().topk(2, dim=1)
    gain = (MARGIN / (top.values[:, 0] - top.values[:, 1])).unsqueeze(1)

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        with precision_context(images.device, "fp16" if scale.cuda else "bf16"):
            logits = model(images)
        return logits.float() * gain

    with frozen_eval(model):
        gradient, _ = loss_gradient(logits_of, x, top.indices[:, 0], ce_loss)
    assert (gradient == 0).float().mean() <= 0.01


@checked(quick=True, cpu=False)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_in_low_precision(scale: Scale, precision: str) -> None:
    trainer = trainer_of(network(scale.arch, scale.size, True), 8, scale, precision=precision)
    images, labels, _ = minibatch(8, scale)
    losses = [free_step(trainer, images, labels)[0] for _ in range(6)]
    values = [*trainer.model.parameters(), torch.stack(losses)]
    assert all(bool(value.isfinite().all()) for value in values)
    assert trainer.noise.abs().max().item() == pytest.approx(EPS, rel=1e-6)


@checked(quick=True, cpu=False)  # there by tests/models/test_cuda_forms.py
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 0.1)])
def test_own_backward_passes(
    scale: Scale, precision: str, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch-norm's in evaluation and the stem's, against PyTorch's."""
    model = network(scale.arch, scale.size).to(scale.device, memory_format=torch.channels_last)
    images, labels, _ = minibatch(8, scale)

    def gradient() -> tuple[torch.Tensor, torch.Tensor]:
        with frozen_eval(model), full_precision(), precision_context(scale.device, precision):
            return loss_gradient(model, images, labels, ce_loss)

    found, logits = gradient()
    monkeypatch.setattr("models.eval_norm.pays", lambda x: False)
    monkeypatch.setattr("models.stem.by_own_backward", lambda x: False)
    expected, same = gradient()
    assert difference(logits, same) <= 1e-6  # cuDNN may choose other kernels
    assert difference(found, expected) <= bound
    assert found.is_contiguous(memory_format=torch.channels_last)


@checked(quick=True, cpu=False)
def test_recorded_passes(scale: Scale) -> None:
    """Those of CUDA graphs are the network's own, of batches that are filled up, too."""
    trainer = trainer_of(network(scale.arch, scale.size, True), 8, scale, precision="bf16")
    logits, (images, labels, _) = partial(trainer.logits, trainer.model), minibatch(8, scale)
    with frozen_eval(trainer.model):
        graphs = recorded(logits, images.clone().requires_grad_())
        for n, bound in ((8, 1e-3), (5, 0.1)):  # cuDNN may choose other kernels
            pair = [loss_gradient(f, images[:n], labels[:n], ce_loss) for f in (logits, graphs)]
            assert max(map(difference, *pair)) <= bound


@contextmanager
def never_waiting() -> Iterator[None]:
    """An error wherever the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@checked(quick=True, cpu=False)  # there on a pretended device
@pytest.mark.parametrize("hypersphere", [False, True])
def test_training_and_pgd_do_not_wait(scale: Scale, hypersphere: bool) -> None:
    """Whole and partial minibatches, the gradient hook, steps of PGD; after one of each."""
    trainer = trainer_of(network(scale.arch, scale.size, hypersphere), 8, scale)
    norms = GradientNorms(trainer, lambda _: None)
    images, labels, _ = minibatch(8, scale)

    def steps() -> None:
        for n in (8, 5):
            free_step(trainer, images[:n], labels[:n])
        free_step(trainer, images, labels, 1.0, lambda: norms.sample(images, labels, 1.0))

    steps()
    with never_waiting():
        steps()
    start = torch.zeros_like(images)
    with frozen_eval(trainer.model):
        iterates = pgd(trainer.model, images, labels, start, Search(5, STEP, EPS))
        next(iterates)
        with never_waiting():
            list(islice(iterates, 3))


def robust_images(
    model: ResNet, batch: DeviceBatch, eps: float, size: int, precision: str = "fp32"
) -> torch.Tensor:
    """(B,) bool on the CPU, by index."""
    parts = zip(*(field.split(size) for field in batch), strict=True)
    attack = PGDAttack(model, PGDSpec(3, eps / 3), ThreatModel(eps, precision=precision))
    with frozen_eval(model):
        outcomes = list(attack.run(DeviceBatch(*part) for part in parts))
    order = torch.cat([outcome.indices for outcome in outcomes]).argsort()
    return torch.cat([outcome.robust for outcome in outcomes])[order].cpu()


@checked(quick=True)
def test_outcomes_do_not_depend_on_the_batch(scale: Scale) -> None:
    """At a radius where some images are robust; in bf16 about as many."""
    model = network("resnet18", scale.size, True).to(scale.device)
    model = model.to(memory_format=torch.channels_last)
    images, _, indices = minibatch(256 if scale.cuda else 12, scale, seed=3)
    with torch.no_grad():
        batch = DeviceBatch(images, model(images).argmax(1), indices)
    robust = partial(robust_images, model, batch)
    eps = next(eps for eps in RADII if robust(eps, 256).float().mean() > 0.3)
    whole = robust(eps, 256)
    shares = [(whole != robust(eps, size)).float().mean() for size in (1, 7)]
    assert whole.float().mean() <= 0.95
    assert max(shares) <= 1e-3
    assert abs((robust(eps, 256, "bf16").float() - whole.float()).mean()) <= 0.1


@checked(cpu=False)
def test_autoattack(scale: Scale) -> None:
    """Its images fool, and the random state is as before."""
    pytest.importorskip("pyautoattack")
    model, images = network("resnet18", 64).to(scale.device), pixels(8, 64).to(scale.device)
    before = torch.get_rng_state(), torch.cuda.get_rng_state(scale.device)
    with torch.no_grad(), frozen_eval(model):
        labels = model(images).argmax(1)
        attack = AutoAttack(model, AutoAttackSpec(), ThreatModel(EPS / 4))
        (outcome,) = attack.run([DeviceBatch(images, labels, torch.arange(8))])
        right = model(outcome.adversarial).argmax(1) == labels
    assert right.tolist() == outcome.robust.tolist()
    after = torch.get_rng_state(), torch.cuda.get_rng_state(scale.device)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
