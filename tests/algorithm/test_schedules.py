"""Learning rates, by table and against numpy."""

import math

import numpy as np
import pytest

from lib.algorithm.schedules import Schedule, cosine_lr, linear_lr, step_lr


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
