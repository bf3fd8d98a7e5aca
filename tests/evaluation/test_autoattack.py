"""The adapter to AutoAttack against the package itself, on a small trained network."""

import logging
import re
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.algorithm.metrics import derived_seed
from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.pool import DeviceBatch, Outcome
from lib.algorithm.protocols import AutoAttackSpec, PGDSpec, ThreatModel
from lib.evaluation.attacks import for_classes, parse_attack
from lib.evaluation.autoattack import AutoAttack, package_attack
from utils.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_autoattack")]

pyautoattack = pytest.importorskip("pyautoattack")

EPS = 20 / 255  # about a third of the digits survive
FATAL = 0.75  # nothing survives the first attack, so a run takes a fraction of a second
STANDARD = AutoAttackSpec()
SEED, FIRST = 11, 1500  # of the evaluation; of the chunk


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_searches_are_as_long_as_the_packages(norm, short_autoattack, monkeypatch):
    monkeypatch.setattr(pyautoattack, "AutoAttack", short_autoattack)
    cpu = torch.device("cpu")
    theirs = short_autoattack(nn.Identity(), eps=EPS, norm=norm, seed=1, device=cpu)
    threat = ThreatModel(EPS, norm=norm)
    ours = package_attack(STANDARD, threat, 10, 1, cpu, nn.Identity())
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
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's digits as (1797, 3, 8, 8) in [0, 1], and their labels."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)
    return images.unsqueeze(1).repeat(1, 3, 1, 1), torch.tensor(data.target)


@pytest.fixture(scope="module")
def model(digits) -> TinyHypersphere:
    """Trained on the first 1500, with the margin of HE."""
    return train(digits, classes=10)


def copy_of(model: TinyHypersphere) -> TinyHypersphere:
    copy = TinyHypersphere(len(model.weight))
    copy.load_state_dict(model.state_dict())
    return copy


def train(digits: tuple[torch.Tensor, torch.Tensor], classes: int) -> TinyHypersphere:
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


@pytest.fixture(scope="module")
def chunk(digits) -> tuple[torch.Tensor, torch.Tensor]:
    return digits[0][1500:1530], digits[1][1500:1530]


def attack_all(model, images, labels, first=FIRST, spec=STANDARD, **threat):
    """AutoAttack's outcomes on one chunk, and its warnings."""
    batch = DeviceBatch(images, labels, torch.arange(first, first + len(labels)))
    runner = AutoAttack(model, spec, ThreatModel(**{"eps": FATAL, "seed": SEED} | threat))
    with frozen_eval(model):
        return list(runner.run([batch])), runner.warnings


def attack(model, images, labels, **more) -> Outcome:
    """AutoAttack's outcome on one chunk."""
    (outcome,), _ = attack_all(model, images, labels, **more)
    return outcome


@pytest.fixture(scope="module")
def outcome(model, chunk, short_autoattack):
    images = chunk[0].contiguous(memory_format=torch.channels_last)  # the package cannot take it
    return attack(model, images, chunk[1], eps=EPS)


def run_package(model, images, labels, eps, norm="Linf"):
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
            package = pyautoattack.AutoAttack(
                model.eval(), eps=eps, norm=norm, seed=seed, device="cpu"
            )
            found, predicted = package.run_standard_evaluation(
                images, labels, batch_size=len(labels)
            )
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)
    model.zero_grad(set_to_none=True)
    matches = (re.match(r"robust accuracy after (\S+): ([\d.]+)%", line) for line in lines)
    return found, predicted, {m[1].lower(): float(m[2]) for m in matches if m}


def check_against_package(outcome: Outcome, model, images, labels, eps, norm="Linf") -> None:
    """Image by image, pixel by pixel, and the accuracy after each attack."""
    found, predicted, accuracies = run_package(model, images, labels, eps, norm)
    assert torch.equal(outcome.robust, predicted == labels)
    assert 4 <= int(outcome.robust.sum()) <= len(labels) - 4  # both kinds, or nothing is shown
    torch.testing.assert_close(outcome.adversarial, found, rtol=0, atol=0)
    assert list(accuracies) == list(STANDARD.stages)
    for number, accuracy in enumerate(accuracies.values(), 1):
        robust = (outcome.stages_survived >= number).float().mean().item()
        assert 100 * robust == pytest.approx(accuracy, abs=0.005)


def test_what_it_returns_holds_on_the_network(outcome, model, chunk):
    images, labels = chunk
    model.eval()
    with torch.no_grad():
        clean = model(images).argmax(1) == labels
        assert torch.equal(outcome.predictions, model(outcome.adversarial).argmax(1))
    assert torch.equal(outcome.robust, outcome.predictions == labels)
    assert torch.equal(outcome.robust, outcome.stages_survived == 4)
    distance = (outcome.adversarial - images).abs().amax(dim=(1, 2, 3))
    assert distance.max() <= EPS + 1e-6
    assert outcome.adversarial.min() >= 0
    assert outcome.adversarial.max() <= 1
    assert torch.equal(distance == 0, outcome.robust | ~clean)


def test_outcome_depends_on_the_seed_and_the_chunk_alone(model, chunk):
    images, labels = chunk[0][:6], chunk[1][:6]
    torch.manual_seed(1)
    first = attack(model, images, labels)
    torch.rand(7)
    second = attack(model, images, labels)
    assert torch.equal(first.adversarial, second.adversarial)
    wide = attack(copy_of(model).double(), images.double(), labels)  # in double precision
    assert torch.equal(wide.robust, first.robust)
    for other in (attack(model, images, labels, first=7), attack(model, images, labels, seed=1)):
        assert not torch.equal(first.adversarial, other.adversarial)


FEW = ("square", "fab-t")


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_take_the_untargeted_attacks(digits, classes):
    small = train(digits, classes)
    few = digits[1][1500:] < classes
    images, labels = digits[0][1500:][few][:4], digits[1][1500:][few][:4]
    (spec,) = for_classes([AutoAttackSpec()], classes)
    expected = ("apgd-ce", "apgd-dlr", "fab", "square")
    assert spec.stages == tuple(x for x in expected if classes == 3 or x != "apgd-dlr")
    for given in (spec, *(parse_attack(name, 0.1) for name in FEW)):
        (each,) = for_classes([given], classes)
        assert not attack(small, images, labels, spec=each).robust.any()


def test_a_radius_of_zero(model, chunk):
    outcome = attack(model, *chunk, eps=0.0)
    with torch.no_grad(), frozen_eval(model):
        assert torch.equal(outcome.robust, model(chunk[0]).argmax(1) == chunk[1])
    assert torch.equal(outcome.adversarial, chunk[0])


def test_one_class_leaves_nothing_to_attack():
    with pytest.raises(UserError, match="nothing to attack"):
        for_classes([AutoAttackSpec()], 1)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", EPS), ("L2", 0.7), ("L1", 3.0)])
def test_every_norm_ends_as_in_the_package_and_below_every_pgd(digits, model, norm, eps):
    model.eval()
    images, labels = digits[0][1500:1524], digits[1][1500:1524]
    outcome = attack(model, images, labels, eps=eps, norm=norm)
    check_against_package(outcome, model, images, labels, eps, norm)
    right = model(images).argmax(1) == labels
    batch = DeviceBatch(images[right], labels[right], torch.arange(FIRST, FIRST + 24)[right])
    for loss in ("ce", "margin", "dlr"):
        spec = PGDSpec(50, 2.5 * eps / 50, loss)
        with frozen_eval(model):
            pgd = PGDAttack(model, spec, ThreatModel(eps, seed=SEED, norm=norm))
            robust = sum(int(each.robust.sum()) for each in pgd.run([batch]))
        assert int(outcome.robust.sum()) <= robust


def test_it_leaves_no_trace(model, chunk):
    model.train()
    model.weight.requires_grad_(False)
    before = torch.get_rng_state()
    trace = sys.gettrace()
    attack(model, chunk[0][:4], chunk[1][:4])
    assert torch.equal(torch.get_rng_state(), before)
    assert sys.gettrace() is trace
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert not model.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    model.weight.requires_grad_(True)


def test_search_in_low_precision_is_judged_in_full(model, chunk, outcome):
    images, labels = chunk
    found = attack(model, images, labels, eps=EPS, precision="bf16")
    with torch.no_grad(), frozen_eval(model):
        assert torch.equal(found.robust, model(found.adversarial).argmax(1) == labels)
    assert (found.robust != outcome.robust).sum() <= 1
    assert not torch.equal(found.adversarial, outcome.adversarial)


def test_what_only_low_precision_takes_for_misclassified_is_attacked_again(model, chunk, outcome):
    class Broken(nn.Module):
        """Answers nonsense under autocast."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = copy_of(model)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = self.inner(images)
            return logits.roll(1, dims=1) if torch.is_autocast_enabled("cpu") else logits

    found = attack(Broken(), *chunk, eps=EPS, precision="bf16")
    assert torch.equal(found.robust, outcome.robust)


def test_fewer_classes_than_ten_take_fewer_targets(digits):
    small = train(digits, classes=4).eval().requires_grad_(False)
    few = digits[1][1500:] < 4
    images, labels = digits[0][1500:][few][:2], digits[1][1500:][few][:2]
    with torch.random.fork_rng():
        threat = ThreatModel(0.01)
        adversary = package_attack(STANDARD, threat, 4, 1, torch.device("cpu"), small)
        adversary.fab.targeted = True
        for attack in (adversary.apgd_targeted, adversary.fab):  # they run past the last class
            assert torch.equal(attack.perturb(images, labels), images)  # too near to be fooled


def test_a_missing_package_is_named(model, chunk, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(UserError, match=r"pyautoattack; pip install -r requirements-extra\.txt"):
        attack(model, *chunk)


def test_the_packages_warnings_are_kept(model, chunk, capfd):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy_of(model)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = self.inner(images)
            return logits + 0.1 * torch.randn_like(logits)

    _, warnings = attack_all(Noisy(), *chunk)
    assert any("randomized" in warning for warning in warnings)
    assert "randomized" not in capfd.readouterr().err
    assert attack_all(model, *chunk)[1] == set()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(model, chunk):
    there = copy_of(model).cuda().to(memory_format=torch.channels_last)
    before = torch.cuda.get_rng_state()
    outcome = attack(there, chunk[0].cuda(), chunk[1].cuda(), eps=EPS)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    there.eval()
    with torch.no_grad():
        predicted = there(outcome.adversarial).argmax(1).cpu()
    assert torch.equal(outcome.robust.cpu(), predicted == chunk[1])
