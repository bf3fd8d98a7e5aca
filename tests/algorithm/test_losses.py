"""Losses against their formulas written out in numpy."""

import numpy as np
import pytest
import torch

from lib.algorithm.losses import ATTACK_LOSS, margin_cross_entropy
from utils.errors import UserError

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 3.0], [0.0, 4.0, 1.0, -2.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1])


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
        ("margin", [3.0 - 2.0, 1.0 - 4.0]),
        # sorted logits: 3, 2, 0.5 and 4, 1, 0
        ("dlr", [(3.0 - 2.0) / (3.0 - 0.5), (1.0 - 4.0) / (4.0 - 0.0)]),
    ],
)
def test_attack_losses(name: str, expected: list[float]) -> None:
    assert ATTACK_LOSS[name](LOGITS, LABELS).tolist() == pytest.approx(expected, rel=1e-9)


def test_cross_entropy_of_each_image() -> None:
    log_sum = np.log(np.exp(LOGITS.numpy()).sum(axis=1))
    expected = log_sum - LOGITS.numpy()[[0, 1], LABELS]
    assert ATTACK_LOSS["ce"](LOGITS, LABELS).tolist() == pytest.approx(expected, rel=1e-12)


def test_dlr_does_not_see_the_scale() -> None:
    one, ten = ATTACK_LOSS["dlr"](LOGITS, LABELS), ATTACK_LOSS["dlr"](10 * LOGITS, LABELS)
    assert one.tolist() == pytest.approx(ten.tolist())


def test_dlr_with_two_classes_says_so() -> None:
    with pytest.raises(UserError, match="use margin"):
        ATTACK_LOSS["dlr"](LOGITS[:, :2], LABELS)
