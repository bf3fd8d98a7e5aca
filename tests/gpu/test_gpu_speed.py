"""Free, natural and PGD steps against the plain published loop of the same run.

GPU_JSON=found.json python -m pytest -s -m gpu tests/gpu/test_gpu_speed.py
"""

import gc
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.gpu.scale import Scale, checked, difference
from tools.benchmark_subject import Case, Plain, Suite, take
from utils.config.validators import REDUCE_OVERHEAD
from utils.storage.conditions import versions

PLAIN = ("plain", "fp32", False)
# Part, images, precision, mode: how many times as fast as the plain loop, at least.
GOALS = {
    ("free", 256, "fp32", False): 1.35,
    ("free", 256, "bf16", False): 2.15,
    ("free", 256, "bf16", True): 3.1,
    ("pgd", 128, "fp32", False): 1.1,
    ("pgd", 128, "bf16", False): 1.9,
    ("pgd", 128, "bf16", True): 3.1,
}
MOST_OVER_NATURAL, LEAST_OVER_EAGER = 1.04, 1.5
ROWS: list[dict[str, Any]] = []


@lru_cache
def measured(scale: Scale, part: str, images: int, subject: str, precision: str, mode: Any) -> Any:
    """(Action to images/s, compilations), with a row of the table for each action."""
    device, seconds = str(scale.device), 1.5 if scale.cuda else 0.01
    images_and_size = images, scale.size, device, 0, "", 0, seconds
    case = Case(part, subject, precision, mode, scale.arch, *images_and_size)
    torch._dynamo.reset()
    counters.clear()
    gc.collect()
    if scale.cuda:
        torch.cuda.empty_cache()
    with pytest.MonkeyPatch.context() as patch:  # tuning is given back
        patch.setattr(torch.backends.cudnn, "benchmark", True)
        measuring = (Plain if subject == "plain" else Suite)(case)
        takes = {name: take(case, *action) for name, action in getattr(measuring, part)().items()}
        if mode is True:
            logits, x = measuring.trainer.logits, measuring.images.requires_grad_(part == "pgd")
            pair = (logits(network, x) for network in (measuring.network, measuring.model))
            assert difference(*pair) <= 0.2  # bf16, random weights
    rates = {action: n / seconds for action, (n, seconds) in takes.items()}
    unit = 50 if part == "pgd" else 1  # its images are counted as PGD-50 would attack them
    for action, rate in rates.items():
        row = {"step": action, "images": images, "subject": subject, "precision": precision}
        row |= {"compiled": mode, "ms": 1000 * images / (unit * rate), "images/s": unit * rate}
        show(row)
    return rates, counters["stats"]["unique_graphs"]


def show(row: dict[str, Any]) -> None:
    """A row of the table, at once, and the whole as JSON into the file that GPU_JSON names."""
    ROWS.append(row)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    builds = f"{device}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    lines = [row.values()] if len(ROWS) > 1 else [[builds], row, row.values()]
    for line in lines:
        print(*(f"{c:>11.4g}" if isinstance(c, float) else f"{c!s:>11}" for c in line))
    if path := os.environ.get("GPU_JSON"):
        Path(path).write_text(json.dumps({"on": builds, "versions": versions(), "rows": ROWS}))


def over(scale: Scale, part: str, images: int, precision: str, mode: Any, base: tuple) -> float:
    """How many times as fast as another subject; a free step takes no longer than a natural one."""
    subjects = ("suite", precision, mode), base
    own, other = (measured(scale, part, images, *subject)[0] for subject in subjects)
    assert images != 256 or own["natural"] / own["free"] <= MOST_OVER_NATURAL
    return own[part] / other[part]


@checked(quick=True, slow=True)
@pytest.mark.parametrize(("part", "images"), [("free", 256), ("pgd", 128)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_eager_steps(scale: Scale, part: str, images: int, precision: str) -> None:
    ratio = over(scale, part, images if scale.cuda else 2, precision, False, PLAIN)
    assert ratio >= GOALS[part, images, precision, False] or not scale.cuda


@checked(cpu=False)
@pytest.mark.parametrize(
    ("part", "images", "mode"),
    [("free", 256, True), ("pgd", 128, True), ("free", 32, REDUCE_OVERHEAD)],
)
def test_compiled_steps(scale: Scale, part: str, images: int, mode: Any) -> None:
    """Few compilations, and what eager computes; CUDA graphs are for few images."""
    base = PLAIN if mode is True else ("suite", "bf16", False)
    least = GOALS[part, images, "bf16", True] if mode is True else LEAST_OVER_EAGER
    assert over(scale, part, images, "bf16", mode, base) >= least
    assert measured(scale, part, images, "suite", "bf16", mode)[1] <= 3
