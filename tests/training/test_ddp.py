"""Training under DistributedDataParallel, plain, in bf16 and compiled, on gloo processes."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import gang

from tests.ddp_steps import train_two_steps
from utils.config.load import merge
from utils.config.settings import Config
from utils.config.validators import REDUCE_OVERHEAD
from utils.distributed.context import DistributedContext

ALONE = DistributedContext(0, 1, torch.device("cpu"))


def train_without_inductor(context: DistributedContext, config: Config) -> dict[str, Any]:
    """DDP matters to the front ends of torch.compile alone; kernels take long to build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        return train_two_steps(context, config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{}, {"precision": "bf16"}, {"compile": True}, {"compile": REDUCE_OVERHEAD}], ids=str
)
def test_two_processes_train_like_one(change: dict[str, Any], tmp_path: Path) -> None:
    arch = "resnet18" if "compile" in change else "resnet50"
    config = merge({"TRAIN": {"lr": 1e-3, "arch": arch, **change}})
    alone = train_two_steps(
        ALONE, merge({"TRAIN": {"lr": 1e-3, "arch": arch, **change, "compile": False}})
    )
    found = gang(2, train_without_inductor, config, folder=tmp_path)
    for one in found:
        assert "strides do not match" not in one["said"]
        assert one["other strides"] == []
    low = config.TRAIN.precision == "bf16"
    for name, value in alone["weights"].items():
        assert (found[0]["weights"][name] == found[1]["weights"][name]).all(), name
        mine = found[0]["weights"][name]  # pytest.approx takes minutes for 25 million numbers
        np.testing.assert_allclose(mine, value, rtol=1e-3, atol=5e-3 if low else 1e-5, err_msg=name)
