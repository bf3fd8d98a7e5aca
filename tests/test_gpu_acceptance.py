"""The acceptance of a GPU, its parts in tiny sizes on the CPU, so that it cannot rot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import forked

from tests.gpu_acceptance import __main__ as command
from tests.gpu_acceptance.checks import FAIL, PASS, Check, at_least, at_most, equal
from tests.gpu_acceptance.environment import runs_on
from tests.gpu_acceptance.runner import PARTS, run_part, run_parts
from tests.gpu_acceptance.setting import Setting


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(torch.device("cpu"), True, tmp_path, forked)


@pytest.mark.slow
@pytest.mark.parametrize("part", list(PARTS))
def test_every_part_holds_on_the_cpu(part: str, setting: Setting) -> None:
    lines = run_parts(setting, [part])
    assert [line for line in lines if line["status"] == FAIL] == []
    assert any(line["status"] == PASS for line in lines) or part == "speed"
    assert len(lines) > 1


def test_what_fails() -> None:
    assert at_most("a", float("nan"), 1).status == at_least("a", float("nan"), 1).status == FAIL
    assert at_most("a", 2, 1).status == at_least("a", 0, 1).status == FAIL
    assert equal("a", 1, 2).status == FAIL
    assert at_most("a", 1, 1).status == at_least("a", 1, 1).status == PASS


def test_an_exception_fails_its_part_alone(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(_: Setting) -> Iterator[Check]:
        yield equal("a", 1, 1)
        raise RuntimeError("CUDA error: an illegal memory access\nmore of it")

    monkeypatch.setitem(PARTS, "pool", broken)
    monkeypatch.setitem(PARTS, "ddp", lambda _: iter([equal("b", 2, 2)]))
    lines = run_parts(setting, ["pool", "ddp"])
    assert [line["status"] for line in lines] == [PASS, FAIL, PASS]
    assert lines[1]["value"].startswith("test_gpu_acceptance.py:")
    assert "illegal memory access" in lines[1]["value"]
    printed = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in printed] == [PASS, FAIL, PASS]
    seconds = next(run_part("pool", lambda _: iter([slow()]), setting))["seconds"]
    assert seconds < 1


def slow() -> Check:
    time.sleep(0.01)
    return equal("a", 1, 1)


def test_without_cuda_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_acceptance", "--quick"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main() == 2
    assert capsys.readouterr().err == (
        "error: this proves the suite on CUDA, and there is no GPU here that torch can use\n"
    )


@pytest.mark.parametrize(
    ("built", "own", "runs"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80"], (8, 6), True),
        (["sm_86"], (8, 0), False),
        (["sm_80", "sm_90a"], (9, 0), True),
        (["sm_100"], (9, 0), False),
        (["sm_90", "compute_90"], (12, 0), True),
        (["sm_90a", "sm_80"], (12, 0), False),
    ],
)
def test_architectures(built: list[str], own: tuple[int, int], runs: bool) -> None:
    assert runs_on(built, own) == runs
