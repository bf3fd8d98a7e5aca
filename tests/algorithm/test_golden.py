"""The published code's numbers, to a relative 1e-9: every trace in tests/golden is replayed."""

import math
from pathlib import Path

import pytest
import torch

from tests.golden_replay import TOLERANCE, TRACES, comparisons, relative_error

TRACES_BY_NAME = [  # the one without FN and WN takes 6 seconds, and is left to the whole suite
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem == "freeat_resnet18"))
    for path in TRACES
]


@pytest.mark.parametrize("path", TRACES_BY_NAME)
def test_every_recorded_number(path: Path) -> None:
    errors = {
        what: relative_error(found, recorded)
        for what, found, recorded in comparisons(path, torch.device("cpu"))
    }
    assert {what: error for what, error in errors.items() if not error <= TOLERANCE} == {}
    assert {"noise", "conv1.weight", "bn1.running_var"} <= errors.keys()


def test_a_difference_would_be_seen() -> None:
    assert relative_error([1.0, 2.0 + 4e-9], [1.0, 2.0]) > TOLERANCE
    assert relative_error([1.0, math.nan, 1.0], [1.0, 1.0, 1.0]) > TOLERANCE
    assert relative_error([1e-12], [0.0]) > TOLERANCE
    assert relative_error([1.0, 5e-14], [1.0, 0.0]) <= TOLERANCE
