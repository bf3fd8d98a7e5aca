"""The adapter to AutoAttack against the package itself, on a small trained network."""

import logging
import re
import sys
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from lib.algorithm.metrics import derived_seed
from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pgd_attack import DeviceBatch, Outcome
from lib.algorithm.protocols import AutoAttackSpec, PGDSpec, ThreatModel
from lib.evaluation.attacks import attack_list, for_classes
from lib.evaluation.autoattack import AutoAttack, package_attack
from utils.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_autoattack")]

pyautoattack = pytest.importorskip("pyautoattack")

EPS = 20 / 255  # about a third of the digits survive
FATAL = 0.75  # nothing survives the first attack, so a run takes a fraction of a second
STANDARD = AutoAttackSpec()
ROWS = [PGDSpec(1, 0.1)]  # of PGD
SEED, FIRST = 11, 1500  # of the evaluation; of the chunk
CPU = torch.device("cpu")
Images = tuple[torch.Tensor, torch.Tensor]  # (B, 3, 8, 8) in [0, 1]; labels


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_searches_are_as_long_as_the_packages(
    norm: str, short_autoattack: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyautoattack, "AutoAttack", short_autoattack)
    theirs = short_autoattack(nn.Identity(), eps=EPS, norm=norm, seed=1, device=CPU)
    ours = package_attack(ThreatModel(EPS, norm=norm), 10, 1, CPU, nn.Identity())
    assert ours.attacks_to_run == theirs.attacks_to_run
    for name in ("apgd", "apgd_targeted", "fab", "square"):
        one, other = (
            {k: v for k, v in vars(getattr(each, name)).items() if isinstance(v, (int, float, str))}
            for each in (ours, theirs)
        )
        assert one == other
        assert max(one.get("n_iter", 0), one.get("n_queries", 0)) >= 100


class TinyHypersphere(nn.Module):
    """A convolution and a head of scaled cosines, as with HE."""

    def __init__(self, classes: int, scale: float = 10.0) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)
        )
        self.weight = nn.Parameter(torch.randn(classes, 8 * 4 * 4))
        self.scale = scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = F.normalize(self.trunk(images).flatten(1), dim=1)
        return self.scale * features @ F.normalize(self.weight, dim=1).T


@pytest.fixture(scope="module")
def digits() -> Images:
    """scikit-learn's 1797 digits."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)
    return images.unsqueeze(1).repeat(1, 3, 1, 1), torch.tensor(data.target)


@pytest.fixture(scope="module")
def model(digits: Images) -> TinyHypersphere:
    return train(digits, classes=10)


@pytest.fixture(scope="module")
def chunk(digits: Images) -> Images:
    return digits[0][1500:1530], digits[1][1500:1530]


def train(digits: Images, classes: int) -> TinyHypersphere:
    """Trained on the first 1500, with the margin of HE."""
    images, labels = digits[0][:1500], digits[1][:1500]
    images, labels = images[labels < classes], labels[labels < classes]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyHypersphere(classes)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(120):
            chosen = torch.randint(len(labels), (100,))
            margin = model.scale * 0.2 * F.one_hot(labels[chosen], classes)
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]) - margin, labels[chosen]).backward()
            optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


def of_classes(digits: Images, classes: int, count: int) -> Images:
    """Some of the others."""
    few = digits[1][1500:] < classes
    return digits[0][1500:][few][:count], digits[1][1500:][few][:count]


def attack(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    first: int = FIRST,
    spec: AutoAttackSpec = STANDARD,
    warnings: set[str] | None = None,
    **threat: Any,
) -> Outcome:
    """AutoAttack's outcome on one chunk; its warnings go into a set."""
    batch = DeviceBatch(images, labels, torch.arange(first, first + len(labels)))
    runner = AutoAttack(model, spec, ThreatModel(**{"eps": FATAL, "seed": SEED} | threat))
    with frozen_eval(model):
        (outcome,) = runner.run([batch])
    if warnings is not None:
        warnings |= runner.warnings
    return outcome


def run_package(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, **ball: Any
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """The package called on its own: adversarial images, predictions, accuracies it logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("auto-attack")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with torch.random.fork_rng():
            seed = derived_seed(SEED, FIRST)
            package = pyautoattack.AutoAttack(model.eval(), seed=seed, device="cpu", **ball)
            pair = package.run_standard_evaluation(images, labels, batch_size=len(labels))
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)
    model.zero_grad(set_to_none=True)
    matches = (re.match(r"robust accuracy after (\S+): ([\d.]+)%", line) for line in lines)
    return *pair, {m[1].lower(): float(m[2]) for m in matches if m}


@pytest.mark.parametrize(("norm", "eps"), [("Linf", EPS), ("L2", 0.7), ("L1", 3.0)])
def test_every_norm_ends_as_in_the_package(
    norm: str, eps: float, model: TinyHypersphere, chunk: Images
) -> None:
    """Image by image, pixel by pixel, and the accuracy after each attack."""
    images, labels = chunk
    adversarial, predicted, accuracies = run_package(model, images, labels, eps=eps, norm=norm)
    images = images.contiguous(memory_format=torch.channels_last)  # the package cannot take it
    outcome = attack(model, images, labels, eps=eps, norm=norm)
    assert torch.equal(outcome.robust, predicted == labels)
    assert 4 <= int(outcome.robust.sum()) <= len(labels) - 4  # both kinds, or nothing is shown
    torch.testing.assert_close(outcome.adversarial, adversarial, rtol=0, atol=0)
    assert list(accuracies) == list(STANDARD.stages)
    for number, accuracy in enumerate(accuracies.values(), 1):
        robust = (outcome.stages_survived >= number).float().mean().item()
        assert 100 * robust == pytest.approx(accuracy, abs=0.005)
    with torch.no_grad(), frozen_eval(model):
        assert torch.equal(outcome.predictions, model(outcome.adversarial).argmax(1))
        misclassified = model(images).argmax(1) != labels
    unchanged = (outcome.adversarial == images).flatten(1).all(dim=1)
    assert torch.equal(unchanged, outcome.robust | misclassified)


def test_outcome_depends_on_the_seed_and_the_chunk_alone(
    model: TinyHypersphere, chunk: Images
) -> None:
    """And leaves no trace."""
    images, labels = chunk[0][:6], chunk[1][:6]
    before, trace = torch.get_rng_state(), sys.gettrace()
    first = attack(model, images, labels)
    assert torch.equal(torch.get_rng_state(), before)
    assert sys.gettrace() is trace
    assert all(p.grad is None for p in model.parameters())
    torch.rand(7)
    assert torch.equal(attack(model, images, labels).adversarial, first.adversarial)
    for other in (attack(model, images, labels, first=7), attack(model, images, labels, seed=1)):
        assert not torch.equal(first.adversarial, other.adversarial)
    wide = TinyHypersphere(10).double()
    wide.load_state_dict(model.state_dict())
    assert torch.equal(attack(wide, images.double(), labels).robust, first.robust)


def test_few_classes_take_the_attacks_there_are(digits: Images) -> None:
    untargeted = ("apgd-ce", "apgd-dlr", "fab", "square")
    for classes, stages in ((2, tuple(s for s in untargeted if "dlr" not in s)), (3, untargeted)):
        small, (images, labels) = train(digits, classes), of_classes(digits, classes, 4)
        (spec,) = for_classes([AutoAttackSpec()], classes)
        assert (spec.stages, spec.label) == (stages, f"AutoAttack ({', '.join(stages)})")
        single = for_classes(attack_list(["square", "fab-t"], ROWS, ThreatModel(EPS)), classes)
        assert [each.label for each in single] == ["Square", "FAB (fab)"]
        for each in (spec, *single):
            assert not attack(small, images, labels, spec=each).robust.any()
    with pytest.raises(UserError, match="nothing to attack"):
        for_classes([AutoAttackSpec()], 1)


def test_fewer_classes_than_ten_take_fewer_targets(digits: Images) -> None:
    small = train(digits, classes=4).eval().requires_grad_(False)
    images, labels = of_classes(digits, 4, 2)
    with torch.random.fork_rng():
        adversary = package_attack(ThreatModel(0.01), 4, 1, CPU, small)
        adversary.fab.targeted = True
        for attack in (adversary.apgd_targeted, adversary.fab):  # they run past the last class
            assert torch.equal(attack.perturb(images, labels), images)  # too near to be fooled


def test_a_radius_of_zero(model: TinyHypersphere, chunk: Images) -> None:
    outcome = attack(model, *chunk, eps=0.0)
    with torch.no_grad(), frozen_eval(model):
        assert torch.equal(outcome.robust, model(chunk[0]).argmax(1) == chunk[1])
    assert torch.equal(outcome.adversarial, chunk[0])


class Wrapped(nn.Module):
    """Another network that changes its outputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class LowPrecisionNonsense(Wrapped):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.inner(images)
        return logits.roll(1, dims=1) if torch.is_autocast_enabled("cpu") else logits


class Noisy(Wrapped):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.inner(images)
        return logits + 0.1 * torch.randn_like(logits)


def test_search_in_low_precision_is_judged_in_full(model: TinyHypersphere, chunk: Images) -> None:
    """What it alone takes for misclassified is attacked again in full precision."""
    full = attack(model, *chunk, eps=EPS)
    low = attack(model, *chunk, eps=EPS, precision="bf16")
    with torch.no_grad(), frozen_eval(model):
        assert torch.equal(low.robust, model(low.adversarial).argmax(1) == chunk[1])
    assert (low.robust != full.robust).sum() <= 1
    assert not torch.equal(low.adversarial, full.adversarial)
    again = attack(LowPrecisionNonsense(model), *chunk, eps=EPS, precision="bf16")
    assert torch.equal(again.robust, full.robust)


def test_a_missing_package_is_named(
    model: TinyHypersphere, chunk: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(UserError, match=r"pyautoattack; pip install -r requirements-extra\.txt"):
        attack(model, *chunk)


def test_the_packages_warnings_are_kept(
    model: TinyHypersphere, chunk: Images, capfd: pytest.CaptureFixture[str]
) -> None:
    warnings: set[str] = set()
    attack(model, *chunk, warnings=warnings)
    assert not warnings
    attack(Noisy(model), *chunk, warnings=warnings)
    assert any("randomized" in warning for warning in warnings)
    assert "randomized" not in capfd.readouterr().err
