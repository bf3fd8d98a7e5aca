"""What the attacks guarantee, and the three protocols against plain loops written out here."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.algorithm import pgd_attack
from lib.algorithm.losses import ATTACK_LOSS
from lib.algorithm.metrics import derived_seed, full_precision, precision_context
from lib.algorithm.pgd import Search, frozen_eval, loss_gradient, random_start
from lib.algorithm.pgd_attack import DeviceBatch, PGDAttack, RandomStarts
from lib.algorithm.protocols import FREEAT, PROTOCOLS, PGDSpec, ThreatModel
from models.hypersphere import HypersphereHead

EPS, STEP, SIZE, CLASSES, IMAGES = 8 / 255, 2 / 255, 16, 5, 11


class SmallNet(nn.Module):
    """Convolution, batch-norm with statistics of its own, and a hypersphere head."""

    scale = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.fc = HypersphereHead(16, CLASSES, feature_norm=True, weight_norm=True)

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer2(self.layer1(x)).mean(dim=(2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.outputs(x)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    network = SmallNet().double()
    network.train()
    with torch.no_grad():
        for _ in range(50):
            network(torch.rand(16, 3, SIZE, SIZE, dtype=torch.float64))
    return network.eval()


@pytest.fixture(scope="module")
def batch(model: nn.Module) -> DeviceBatch:
    """Images with their predicted class as label, so that all are right before the attack."""
    images = torch.rand(IMAGES, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        labels = model(images).argmax(1)
    return DeviceBatch(images, labels, torch.arange(100, 100 + IMAGES))


def run(
    model: nn.Module, batch: DeviceBatch, spec: PGDSpec, threat: ThreatModel, size: int
) -> dict:
    """Outcomes by index: (robust, robust5, adversarial image)."""
    parts = zip(*(field.split(size) for field in batch), strict=True)
    found = {}
    with frozen_eval(model):
        for outcome in PGDAttack(model, spec, threat).run(DeviceBatch(*part) for part in parts):
            for i, robust, robust5, image in zip(
                outcome.indices.tolist(),
                outcome.robust.tolist(),
                outcome.robust5.tolist(),
                outcome.adversarial,
                strict=True,
            ):
                assert i not in found
                found[i] = robust, robust5, image
    return found


def test_starts_drawn_ahead_are_the_same() -> None:
    images = torch.zeros(5, 3, 4, 4, dtype=torch.float64).contiguous(
        memory_format=torch.channels_last
    )
    indices = torch.tensor([5, 1, 9, 9, 0])
    batches = [DeviceBatch(images, indices, indices), DeviceBatch(images[:2], *2 * [indices[:2]])]
    starts = RandomStarts(Search(1, 0.1, 0.1), 7)
    for batch in starts.drawn_ahead(batches):
        restart = torch.arange(len(batch.indices)) % 2
        noise = starts(batch.images, batch.indices, restart)
        assert noise.dtype == torch.float64
        for row, index, number in zip(noise, batch.indices.tolist(), restart.tolist(), strict=True):
            expected = random_start(index, (3, 4, 4), 0.1, 7, number)
            assert torch.equal(row, expected.double())


def plain_loop(
    model: nn.Module, batch: DeviceBatch, steps: int, protocol: str, restart: int = 0
) -> Iterator[torch.Tensor]:
    """PGD on cross-entropy as the protocols define it; the start, then every iterate."""
    images, labels, indices = batch
    start = []
    for index in indices.tolist():
        generator = torch.Generator().manual_seed(derived_seed(3, restart, index))
        start.append((torch.rand(3, SIZE, SIZE, generator=generator) * 2 - 1) * EPS)
    x = (images + torch.stack(start).double()).clamp(0, 1)
    centre = x.clone() if protocol == "paper" else images
    yield x
    for _ in range(steps):
        x = x.detach().requires_grad_()
        outputs = model.outputs(x) if protocol == "paper" else model(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(outputs, labels), x)
        x = x.detach() + STEP * gradient.sign()
        x = torch.max(torch.min(x, centre + EPS), centre - EPS).clamp(0, 1)
        yield x


@pytest.mark.parametrize("restarts", [1, 5])
@pytest.mark.parametrize("protocol", ["freeat", "paper"])
def test_last_iterate_protocols(model, batch, protocol: str, restarts: int) -> None:
    threat = ThreatModel(EPS, PROTOCOLS[protocol], seed=3)
    found = run(model, batch, PGDSpec(4, STEP, restarts=restarts), threat, IMAGES)
    lasts = [[*plain_loop(model, batch, 4, protocol, r)][-1] for r in range(restarts)]
    with torch.no_grad():
        rights = [model(last).argmax(1) == batch.labels for last in lasts]
    for row, index in enumerate(batch.indices.tolist()):
        robust, robust5, image = found[index]
        wrong = [last for last, right in zip(lasts, rights, strict=True) if not right[row]]
        assert robust == (not wrong)
        assert robust5  # five classes
        # The start is drawn in float32 as low + u * (high - low), which rounds its own way.
        assert torch.allclose(image, (wrong or lasts[-1:])[0][row], atol=1e-7)


@pytest.mark.parametrize("restarts", [1, 2])
def test_standard_counts_every_iterate_of_every_restart(model, batch, restarts: int) -> None:
    spec = PGDSpec(4, STEP, "ce", restarts)
    found = run(model, batch, spec, ThreatModel(EPS, seed=3), 4)
    right = torch.ones(IMAGES, dtype=torch.bool)
    for restart in range(restarts):
        for iterate in plain_loop(model, batch, 4, "standard", restart):
            right &= model(iterate).argmax(1) == batch.labels
    assert {i: r for i, (r, _, _) in found.items()} == dict(
        zip(batch.indices.tolist(), right.tolist(), strict=True)
    )
    assert 0 < int(right.sum()) < IMAGES  # the case tells robust from misclassified
    for row, index in enumerate(batch.indices.tolist()):
        if right[row]:  # it has come through, to the last iterate of the last restart
            assert torch.allclose(found[index][2], iterate[row], atol=1e-7)


def test_searches_stay_in_channels_last(model, batch) -> None:
    """Another layout is slower, and another program to a compiler."""
    layouts: list[int] = []
    handle = model.layer1[0].register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].stride(1))
    )
    images = batch.images.contiguous(memory_format=torch.channels_last)
    run(model, batch._replace(images=images), PGDSpec(4, STEP, "ce", 2), ThreatModel(EPS), 4)
    handle.remove()
    assert set(layouts) == {1}


class Band(nn.Module):
    """Puts some of six classes before class 0 while an image's mean is in a band on PGD's way."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.before = before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(1, 2, 3)).unsqueeze(1)
        others = mean.expand(-1, 6) * torch.arange(1, 7) * 1e-3 - 1
        lead = 2 * (torch.arange(6) < self.before) * ((mean - 0.5).abs() < 0.01)
        return torch.cat([torch.zeros_like(mean), others + lead], dim=1)


@pytest.mark.parametrize(
    ("protocol", "before", "robust"),
    [("standard", 6, (False, False)), ("standard", 2, (False, True)), ("freeat", 6, (True, True))],
)
def test_an_image_that_is_misclassified_on_the_way_alone(protocol, before, robust) -> None:
    images, labels = torch.full((5, 3, 8, 8), 0.47), torch.zeros(5, dtype=torch.int64)
    threat, spec = ThreatModel(0.1, PROTOCOLS[protocol], seed=3), PGDSpec(12, 0.01)
    found = run(Band(before), DeviceBatch(images, labels, torch.arange(5)), spec, threat, 2)
    assert {entry[:2] for entry in found.values()} == {robust}


@pytest.mark.parametrize("protocol", ["standard", "freeat", "paper"])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_exact_under_any_batch_size_and_inside_the_ball(model, batch, protocol, loss) -> None:
    spec, threat = PGDSpec(3, STEP, loss), ThreatModel(EPS, PROTOCOLS[protocol], seed=3)
    results = [run(model, batch, spec, threat, size) for size in (1, 4, IMAGES)]
    for other in results[1:]:
        for i in batch.indices.tolist():
            assert other[i][:2] == results[0][i][:2]
            assert torch.allclose(other[i][2], results[0][i][2], atol=1e-12)
    radius = (2 if protocol == "paper" else 1) * EPS
    for i, clean in zip(batch.indices.tolist(), batch.images, strict=True):
        image = results[0][i][2]
        assert (image - clean).abs().max() <= radius + 1e-7
        assert image.min() >= 0
        assert image.max() <= 1


@pytest.mark.parametrize("lead", [1e3, -1e3])
def test_the_network_itself_has_the_last_word(model, batch, lead: float) -> None:
    """A compiled search that takes every image for right, or none, decides about nothing."""
    label = batch.labels.mode().values
    chosen = DeviceBatch(*(field[batch.labels == label] for field in batch))
    lie, outcomes = lead * F.one_hot(label, CLASSES), []
    with frozen_eval(model):
        for seed in range(4):
            threat = ThreatModel(6 * EPS, seed=seed)
            attack = PGDAttack(model, PGDSpec(2, STEP), threat, lambda x: model.outputs(x) + lie)
            for outcome in attack.run([chosen]):
                outcomes += zip(outcome.robust, model(outcome.adversarial), strict=True)
    assert all(robust == (logits.argmax() == label) for robust, logits in outcomes)
    assert {bool(robust) for robust, _ in outcomes} == {True, False}


def test_low_precision_search_is_judged_in_full(model, batch) -> None:
    spec = PGDSpec(6, STEP)
    single = model.float()
    images = DeviceBatch(batch.images.float(), batch.labels, batch.indices)
    found = run(single, images, spec, ThreatModel(EPS, seed=3, precision="bf16"), 5)
    with torch.no_grad():
        for i, label in zip(batch.indices.tolist(), batch.labels, strict=True):
            robust, _, image = found[i]
            assert robust == bool(single(image[None]).argmax() == label)
    model.double()
    assert any(not robust for robust, _, _ in found.values())


@pytest.mark.parametrize("loss", list(ATTACK_LOSS))
@pytest.mark.parametrize("hypersphere", [True, False])
def test_float16_keeps_the_gradients_of_confident_images(hypersphere: bool, loss: str) -> None:
    """However far the true logit is ahead; at 15 all of the pixels' gradients were zero once."""
    torch.manual_seed(0)
    network = SmallNet()
    if not hypersphere:
        network.fc = nn.Linear(16, CLASSES)
    network.eval().requires_grad_(False)
    images = torch.rand(6, 3, SIZE, SIZE)
    top = network(images).topk(2, dim=1)
    labels, lead = top.indices[:, 0], top.values[:, 0] - top.values[:, 1]
    for margin in (5, 10, 15, 20, 30):
        gain = (margin / lead).unsqueeze(1)
        gradients = []
        for precision in ("fp32", "fp16"):

            def logits_of(x: torch.Tensor, name=precision, gain=gain) -> torch.Tensor:
                with precision_context(x.device, name):
                    logits = network(x)
                return logits.float() * gain

            gradients.append(loss_gradient(logits_of, images, labels, ATTACK_LOSS[loss])[0])
        single, half = gradients
        assert (half == 0).float().mean() <= (single == 0).float().mean() + 0.01
        assert (half.sign() == single.sign()).float().mean() > 0.95


def test_full_precision_has_no_tf32_and_puts_it_back() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", True)
        with full_precision():
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32


def test_what_another_arithmetic_found_is_judged_in_batches_of_few_sizes(
    model, batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(model, batch, PGDSpec(3, STEP), ThreatModel(EPS, seed=3), IMAGES)
    monkeypatch.setattr(pgd_attack, "is_full_precision", lambda *_: False)  # as with TF32
    sizes = []

    def count(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if not torch.is_grad_enabled():
            sizes.append((len(inputs[0]), torch.backends.cudnn.benchmark))

    with model.register_forward_pre_hook(count), monkeypatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "benchmark", True)
        found = run(model, batch, PGDSpec(3, STEP), ThreatModel(EPS, seed=3), IMAGES)
        assert torch.backends.cudnn.benchmark
    assert sizes
    assert set(sizes) == {(32, False)}
    assert {i: entry[0] for i, entry in found.items()} == {i: e[0] for i, e in expected.items()}


def test_the_scale_changes_what_cross_entropy_ascends(model, batch) -> None:
    threat = ThreatModel(EPS, FREEAT, seed=3)
    own = run(model, batch, PGDSpec(3, STEP), threat, IMAGES)
    same = run(model, batch, PGDSpec(3, STEP, scale=10.0), threat, IMAGES)
    unscaled = run(model, batch, PGDSpec(3, STEP, scale=1.0), threat, IMAGES)
    first = int(batch.indices[0])
    assert torch.allclose(own[first][2], same[first][2])
    assert not torch.allclose(own[first][2], unscaled[first][2])


def test_mode_and_gradients_are_restored(model, batch) -> None:
    model.train()
    model.layer1.eval()
    model.layer2[0].weight.requires_grad_(False)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    run(model, batch, PGDSpec(1, STEP), ThreatModel(EPS), IMAGES)
    assert model.training
    assert not model.layer1.training
    assert not model.layer2[0].weight.requires_grad
    assert model.fc.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    model.layer2[0].weight.requires_grad_(True)
    model.eval()
