"""FastAT, PGD adversarial training and natural training against plain code."""

import copy

import pytest
import torch
from test_free_training import ATTACK_STEPS, EPS, STEP, TinyNet, trainer_of
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.algorithm.protocols import METHODS
from lib.algorithm.training import (
    TRAINING_STEP,
    Trainer,
    draw_noise_,
    fast_step,
    natural_step,
    pgd_step,
)
from lib.training.setup import make_optimizer
from utils.config.load import merge


@pytest.fixture
def minibatch() -> tuple[torch.Tensor, torch.Tensor]:
    """Five images for a buffer of six; some pixels beyond the range once they are moved."""
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    return images, torch.tensor([0, 1, 2, 0, 1])


def plain_loss(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """With the margin of HE, and label smoothing of 0.1."""
    margin = 2.0 if model.scale != 1 else 0.0
    logits = model(x)
    return F.cross_entropy(
        logits - margin * F.one_hot(labels, logits.shape[1]), labels, label_smoothing=0.1
    )


def plain_update(model: nn.Module, optimizer: object, x: torch.Tensor, labels: object) -> None:
    optimizer.zero_grad()
    plain_loss(model, x, labels).backward()
    optimizer.step()
    if model.scale != 1:
        model.fc.project_()


def plain_copy(trainer: Trainer) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = copy.deepcopy(trainer.model)
    return model, torch.optim.SGD(model.parameters(), **trainer.optimizer.defaults)


def same_state(model: nn.Module, other: nn.Module) -> None:
    for key, value in model.state_dict().items():
        assert torch.allclose(value, other.state_dict()[key], rtol=1e-10, atol=1e-12), key


@pytest.mark.parametrize("hypersphere", [False, True], ids=["plain", "HE"])
def test_fast_with_two_replays(hypersphere: bool, minibatch: tuple) -> None:
    images, labels = minibatch
    trainer = trainer_of(hypersphere, label_smoothing=0.1)
    model, optimizer = plain_copy(trainer)
    noise = trainer.noise.clone()
    for _ in range(2):
        fast_step(trainer, images, labels)
        delta = noise[:5].clone().requires_grad_()
        plain_loss(model, (images + delta).clamp(0, 1), labels).backward()
        noise[:5] = (noise[:5] + STEP * delta.grad.sign()).clamp(-EPS, EPS)
        plain_update(model, optimizer, (images + noise[:5]).clamp(0, 1), labels)
    same_state(trainer.model, model)
    assert torch.equal(trainer.noise, noise)


@pytest.mark.parametrize("hypersphere", [False, True], ids=["plain", "HE"])
def test_pgd_attacks_in_evaluation_mode(hypersphere: bool, minibatch: tuple) -> None:
    images, labels = minibatch
    trainer = trainer_of(hypersphere, label_smoothing=0.1)
    model, optimizer = plain_copy(trainer)
    for _ in range(2):
        pgd_step(trainer, images, labels)
        x = (images + trainer.noise[:5]).clamp(0, 1)
        model.eval()
        for _ in range(ATTACK_STEPS):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(plain_loss(model, x, labels), x)
            x = torch.min(torch.max(x + STEP * gradient.sign(), images - EPS), images + EPS)
            x = x.clamp(0, 1)
        model.train()
        plain_update(model, optimizer, x.detach(), labels)
    same_state(trainer.model, model)
    assert trainer.model.training


def test_natural(minibatch: tuple) -> None:
    trainer = trainer_of(label_smoothing=0.1)
    model, optimizer = plain_copy(trainer)
    before = trainer.noise.clone()
    natural_step(trainer, *minibatch)
    plain_update(model, optimizer, *minibatch)
    same_state(trainer.model, model)
    assert torch.equal(trainer.noise, before)


@pytest.mark.parametrize("method", METHODS)
def test_cost_is_the_number_of_forward_passes_with_a_gradient(
    method: str, minibatch: tuple
) -> None:
    trainer, passes = trainer_of(), []
    trainer.model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    TRAINING_STEP[method](trainer, *minibatch)
    assert len(passes) == sum(passes) == METHODS[method].cost(1, ATTACK_STEPS)
    assert METHODS["free"].cost(4, 0) == 4


def test_drawn_noise_does_not_depend_on_how_a_minibatch_is_shared_out() -> None:
    whole = torch.zeros(8, 3, 4, 4)
    draw_noise_(whole, EPS, (0, 1, 2), range(8))
    for rank in range(2):
        share = torch.zeros(4, 3, 4, 4)
        draw_noise_(share, EPS, (0, 1, 2), range(rank, 8, 2))
        assert torch.equal(share, whole[rank::2])
    assert whole.abs().max() <= EPS
    assert whole.abs().mean() == pytest.approx(EPS / 2, rel=0.1)
    assert len(whole.unique()) > 380


def test_average_of_the_weights_and_statistics(minibatch: tuple) -> None:
    trainer = trainer_of()
    trainer.average = AveragedModel(
        trainer.model, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True
    )
    expected: dict[str, torch.Tensor] = {}
    for number in range(3):
        natural_step(trainer, *minibatch)
        for key, value in trainer.model.state_dict().items():
            kept = 0.75 * expected[key] + 0.25 * value if number else value.clone()
            expected[key] = kept
    state = trainer.average.module.state_dict()
    for key in ("conv.weight", "bn.running_var", "fc.bias"):
        assert torch.allclose(state[key], expected[key], rtol=1e-12), key


def test_weight_decay_without_batch_norm() -> None:
    model = TinyNet(False)
    groups = make_optimizer(model, merge({"TRAIN": {"bn_weight_decay": False}}), "cpu").param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4, 0]
    assert [len(group["params"]) for group in groups] == [4, 2]
    assert groups[1]["params"][0] is model.bn.weight
    assert len(make_optimizer(model, merge({}), "cpu").param_groups) == 1
