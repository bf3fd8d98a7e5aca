"""Losses, learning rates and balls against their formulas, numpy and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lib.algorithm.losses import ATTACK_LOSS, margin_cross_entropy
from lib.algorithm.norms import LINF, NORMS, Norm
from lib.algorithm.schedules import Schedule, cosine_lr, linear_lr, step_lr
from utils.errors import UserError

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 3.0], [0.0, 4.0, 1.0, -2.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1])
EVERY = pytest.mark.parametrize("norm", NORMS.values(), ids=list(NORMS))
EPS = {"Linf": 0.1, "L2": 0.4, "L1": 1.0}  # of 12 values


# Losses


def test_margin_is_taken_off_the_true_logit() -> None:
    shifted = LOGITS.numpy().copy()
    shifted[[0, 1], LABELS] -= 2.0
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    expected = (log_sum - shifted[[0, 1], LABELS]).mean()
    assert margin_cross_entropy(LOGITS, LABELS, 2.0).item() == pytest.approx(expected, rel=1e-12)


def test_low_precision_logits_are_judged_in_float32() -> None:
    assert margin_cross_entropy(LOGITS.bfloat16(), LABELS).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ce", np.log(np.exp(LOGITS.numpy()).sum(axis=1)) - [2.0, 4.0]),
        ("margin", [3.0 - 2.0, 1.0 - 4.0]),
        # sorted logits: 3, 2, 0.5 and 4, 1, 0
        ("dlr", [(3.0 - 2.0) / (3.0 - 0.5), (1.0 - 4.0) / (4.0 - 0.0)]),
    ],
)
def test_attack_losses(name: str, expected: list[float]) -> None:
    assert ATTACK_LOSS[name](LOGITS, LABELS).tolist() == pytest.approx(expected, rel=1e-9)


def test_dlr_does_not_see_the_scale() -> None:
    one, ten = ATTACK_LOSS["dlr"](LOGITS, LABELS), ATTACK_LOSS["dlr"](10 * LOGITS, LABELS)
    assert one.tolist() == pytest.approx(ten.tolist())


def test_dlr_with_two_classes_says_so() -> None:
    with pytest.raises(UserError, match="use margin"):
        ATTACK_LOSS["dlr"](LOGITS[:, :2], LABELS)


# Learning rates


@pytest.mark.parametrize(
    ("epoch", "repeats", "lr"),
    [
        *[(0, 4, 0.1), (7, 4, 0.1), (8, 4, 0.01), (15, 4, 0.01), (16, 4, 0.001), (22, 4, 0.001)],
        *[(29, 1, 0.1), (30, 1, 0.01), (60, 1, 0.001), (3, 10, 0.01), (0, 40, 0.1), (1, 40, 0.01)],
    ],
)
def test_step(epoch: int, repeats: int, lr: float) -> None:
    assert step_lr(epoch, 0.1, repeats) == pytest.approx(lr, rel=1e-12)
    assert Schedule("step", 0.1, repeats)(epoch, 0.9) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize("points", [([0, 1, 6], [0, 0.4, 0.04]), ([6, 12], [0.04, 0.004])])
def test_linear_is_numpys_interpolation(points: tuple[list[float], list[float]]) -> None:
    for time in np.linspace(0, 13, 40):
        assert linear_lr(time, *points) == pytest.approx(np.interp(time, *points), abs=1e-15)
    assert linear_lr(3, [2], [0.5]) == 0.5


def test_cosine_with_warmup() -> None:
    found = [cosine_lr(time, 0.2, 10, 2) for time in (0, 1, 2, 6, 10, 11)]
    assert found == pytest.approx([0, 0.1, 0.2, 0.1, 0, 0], abs=1e-15)
    assert cosine_lr(1, 0.2, 4) == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)))
    assert Schedule("cosine", 0.2, passes=10, warmup_epochs=2)(5, 1.0) == pytest.approx(0.1)
    # A pass of free is four epochs: 8 of 16 after the second of 4, 2 after half of the first.
    linear = Schedule("linear", 0.2, 4, 4, epochs=(0, 8, 16), values=(0, 0.1, 0))
    assert [linear(pass_, 1.0) for pass_ in range(4)] == pytest.approx([0.05, 0.1, 0.05, 0])
    assert Schedule("cosine", 0.2, 4, 4, warmup_epochs=4)(0, 0.5) == pytest.approx(0.1)


# Balls


def nearest(image: np.ndarray, centre: np.ndarray, eps: float, norm: Norm) -> np.ndarray:
    """By scipy: the change is a difference of two non-negative parts, so that L1 is linear."""
    n = len(image)
    if norm is LINF:
        return np.clip(image, np.maximum(0, centre - eps), np.minimum(1, centre + eps))

    def change(parts: np.ndarray) -> np.ndarray:
        return parts[:n] - parts[n:]

    def room(parts: np.ndarray) -> float:
        return eps - parts.sum() if norm.order == 1 else eps**2 - (change(parts) ** 2).sum()

    def gradient(parts: np.ndarray) -> np.ndarray:
        by_point = 2 * (centre + change(parts) - image)
        return np.concatenate([by_point, -by_point])

    found = minimize(
        lambda parts: ((centre + change(parts) - image) ** 2).sum(),
        np.full(2 * n, 1e-3),
        jac=gradient,
        bounds=[(0, 1 - c) for c in centre] + [(0, c) for c in centre],
        constraints={"type": "ineq", "fun": room},
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-13},
    )
    assert found.success, found.message
    return centre + change(found.x)


@EVERY
def test_projections_are_scipys(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(8, 3, 2, 2, generator=generator, dtype=torch.float64)
    away = 0.7 * torch.randn(8, 3, 2, 2, generator=generator, dtype=torch.float64)
    projected = norm.project(centres + away, centres, EPS[norm.name])
    clipped = 0
    for image, centre, found in zip(centres + away, centres, projected, strict=True):
        expected = nearest(image.flatten().numpy(), centre.flatten().numpy(), EPS[norm.name], norm)
        assert found.flatten().numpy() == pytest.approx(expected, abs=1e-5)
        clipped += int(((found == 0) | (found == 1)).sum())
    assert clipped > 0  # the pixel range took part


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projections_stay_inside_and_leave_what_is_inside(norm: Norm, dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    centre = torch.rand(16, 3, 8, 8, generator=generator, dtype=dtype)
    eps = 4 * EPS[norm.name]
    far = centre + torch.randn(centre.shape, generator=generator, dtype=dtype)
    projected = norm.project(far, centre, eps)
    assert norm.length(projected - centre).max() <= eps * (1 + 1e-6)
    assert norm.length(projected - centre).min() >= eps * (1 - 1e-3)
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert torch.allclose(norm.project(projected, centre, eps), projected, atol=1e-6)
    near = (centre + 0.1 * (projected - centre)).clamp(0, 1)
    assert torch.allclose(norm.project(near, centre, eps), near, atol=1e-7)
    assert torch.equal(norm.project(far, centre, 0.0), centre)


@EVERY
def test_points_fill_the_ball(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.empty(4000, 1, 1, 2)
    for row in noise:
        norm.draw(row, 2.0, generator)
    length = norm.length(noise).flatten()
    assert length.max() <= 2.0 + 1e-6
    # In two dimensions a quarter of the ball lies within half of the radius.
    assert (length <= 1.0).float().mean() == pytest.approx(0.25, abs=0.03)
    assert noise.mean(dim=0).abs().max() < 0.07


@EVERY
def test_directions_have_length_one_and_ascend(norm: Norm) -> None:
    gradient = torch.randn(5, 3, 20, 20, generator=torch.Generator().manual_seed(4))
    gradient[4] = 0
    step = norm.direction(gradient)
    assert norm.length(step[:4]).flatten().tolist() == pytest.approx([1.0] * 4, rel=1e-5)
    assert torch.equal(step[4], torch.zeros_like(step[4]))
    gain = (gradient * step).sum(dim=(1, 2, 3))[:4]
    dual = {"Linf": 1.0, "L2": 2.0, "L1": float("inf")}[norm.name]
    best = torch.linalg.vector_norm(gradient[:4], dual, dim=(1, 2, 3))  # Hoelder's inequality
    if norm.name == "L1":
        assert ((step != 0).sum(dim=(1, 2, 3))[:4] == 12).all()  # 1 % of 1200
        assert (gain > 0.65 * best).all()
    else:
        assert torch.allclose(gain, best, rtol=1e-5)
