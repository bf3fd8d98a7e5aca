"""The free step against finite differences, and the promises of the noise buffer."""

import pytest
import torch
from torch import nn

from lib.algorithm.losses import margin_cross_entropy
from lib.algorithm.training import Trainer, TrainingSettings, free_step, make_noise, update_noise_
from lib.training.setup import make_optimizer
from models.hypersphere import HypersphereHead
from utils.config.settings import Config, Train

EPS, STEP, LR, ATTACK_STEPS = 0.1, 0.04, 0.5, 3


class TinyNet(nn.Module):
    """A smooth network of 3 classes on 4 x 4 pixels, with a hypersphere head if asked for."""

    def __init__(self, hypersphere: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = HypersphereHead(16, 3, True, True) if hypersphere else nn.Linear(16, 3)
        self.scale = 10.0 if hypersphere else 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.fc(torch.tanh(self.bn(self.conv(x))).flatten(1))


def trainer_of(hypersphere: bool = False, decay: float = 1e-3, **changes: object) -> Trainer:
    """The same one at every call, in float64, with noise of six images."""
    torch.manual_seed(0)
    model = TinyNet(hypersphere).double()
    if hypersphere:
        model.fc.project_()
    margin = 2.0 if hypersphere else 0.0
    settings = TrainingSettings(EPS, STEP, margin, attack_steps=ATTACK_STEPS, **changes)
    noise = torch.empty(6, 3, 4, 4, dtype=torch.float64).uniform_(-EPS, EPS)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=decay)
    return Trainer(model, optimizer, noise, settings)


@pytest.fixture(params=[False, True], ids=["plain", "HE"])
def trainer(request: pytest.FixtureRequest) -> Trainer:
    return trainer_of(request.param, decay=0.0)


@pytest.fixture
def minibatch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    # Away from 0 and 1, where clamping has a kink that finite differences would straddle.
    images = 0.2 + 0.6 * torch.rand(5, 3, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.tensor([0, 1, 2, 0, 1])


def loss_at(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        logits = trainer.model((images + trainer.noise[:5]).clamp(0, 1))
        return margin_cross_entropy(logits, labels, trainer.settings.scaled_margin).item()


def difference(
    tensor: torch.Tensor, place: tuple[int, ...], loss: object, h: float = 1e-6
) -> float:
    """Central difference of a loss in one number of a tensor."""
    kept = tensor[place].item()
    values = []
    for shift in (h, -h):
        tensor[place] = kept + shift
        values.append(loss())
    tensor[place] = kept
    return (values[0] - values[1]) / (2 * h)


def test_one_backward_pass_serves_noise_and_weights(trainer, minibatch) -> None:
    images, labels = minibatch
    parameters = dict(trainer.model.named_parameters())

    def loss() -> float:
        return loss_at(trainer, images, labels)

    expected_noise = trainer.noise.clone()
    for place in [(0, 0, 0, 0), (1, 2, 3, 1), (4, 1, 2, 2), (3, 0, 1, 3)]:
        slope = difference(trainer.noise, place, loss)
        moved = trainer.noise[place].item() + STEP * (1 if slope > 0 else -1)
        expected_noise[place] = min(max(moved, -EPS), EPS)
    expected = {}
    for name, place in [("conv.weight", (1, 0, 2, 1)), ("conv.bias", (2,)), ("bn.weight", (3,))]:
        slope = difference(parameters[name].data, place, loss)
        expected[name, place] = parameters[name][place].item() - LR * slope

    free_step(trainer, images, labels)

    for place in [(0, 0, 0, 0), (1, 2, 3, 1), (4, 1, 2, 2), (3, 0, 1, 3)]:
        assert trainer.noise[place].item() == pytest.approx(expected_noise[place].item(), abs=1e-12)
    for (name, place), value in expected.items():
        assert parameters[name][place].item() == pytest.approx(value, abs=1e-7)


def test_head_gradient_treats_the_norm_as_a_constant() -> None:
    """Finite differences of the loss with the row norms held at what they were."""
    torch.manual_seed(0)
    head = HypersphereHead(6, 3, feature_norm=True, weight_norm=True).double()
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[1.0], [2.0], [0.5]]))  # any stored weight gives cosines
    z, labels = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    norms = head.weight.detach().norm(dim=1, keepdim=True)
    unit_z = z / z.norm(dim=1, keepdim=True)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return margin_cross_entropy(10 * unit_z @ (weight / norms).T, labels, 2.0)

    margin_cross_entropy(10 * head(z), labels, 2.0).backward()
    weight = head.weight.detach().clone()
    for place in [(0, 0), (1, 3), (2, 5)]:
        slope = difference(weight, place, lambda: loss(weight).item())
        assert head.weight.grad[place].item() == pytest.approx(slope, abs=1e-8)


def test_noise_update_is_a_sign_step_with_projection() -> None:
    noise = torch.tensor([0.0, 0.09, -0.1, 0.05, 0.02, 0.02]).view(1, 1, 2, 3)
    overflow = float("nan"), float("-inf")  # of fp16
    gradient = torch.tensor([3.0, 1e-9, -5.0, 0.0, *overflow]).view(1, 1, 2, 3)
    update_noise_(noise, gradient, step=0.03, eps=0.1)
    assert noise.flatten().tolist() == pytest.approx([0.03, 0.1, -0.1, 0.05, 0.02, -0.01])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_keeps_noise_and_weights_in_full(precision: str) -> None:
    torch.manual_seed(0)
    model = TinyNet(hypersphere=True)
    noise = make_noise(8, 4, "cpu")
    settings = TrainingSettings(EPS, STEP, 2.0, precision)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.05), noise, settings)
    images, labels = torch.rand(8, 3, 4, 4), torch.arange(8) % 3
    losses = [free_step(trainer, images, labels)[0].item() for _ in range(30)]
    assert losses[-1] < losses[0]
    assert noise.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert noise.isfinite().all()


def test_a_first_step_that_overflows_leaves_no_momentum() -> None:
    """The next one then goes as if it had been the first."""
    config = Config(TRAIN=Train(precision="fp16"))
    images, labels = torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 0])
    weights = []
    for first_scale in (2.0**60, 2.0**10):
        torch.manual_seed(0)
        model = TinyNet(hypersphere=False)
        settings = TrainingSettings(EPS, 0.0, precision="fp16")
        optimizer = make_optimizer(model, config, "cpu")
        trainer = Trainer(model, optimizer, make_noise(4, 4, "cpu"), settings)
        trainer.scaler = torch.amp.GradScaler("cpu", first_scale, backoff_factor=2.0**-50)
        for _ in range(2 if first_scale > 2.0**10 else 1):
            free_step(trainer, images, labels)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
