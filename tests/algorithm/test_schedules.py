"""Epoch arithmetic, by table."""

from __future__ import annotations

import pytest

from lib.algorithm.schedules import lr_at


@pytest.mark.parametrize(
    ("epoch", "repeats", "lr"),
    [
        *[(0, 4, 0.1), (7, 4, 0.1), (8, 4, 0.01), (15, 4, 0.01), (16, 4, 0.001), (22, 4, 0.001)],
        *[(29, 1, 0.1), (30, 1, 0.01), (60, 1, 0.001), (3, 10, 0.01), (0, 40, 0.1), (1, 40, 0.01)],
    ],
)
def test_learning_rate(epoch: int, repeats: int, lr: float) -> None:
    assert lr_at(epoch, 0.1, repeats) == pytest.approx(lr, rel=1e-12)
