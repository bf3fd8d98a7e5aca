"""Devices that are missing, shared, broken or too small: one line each, with the fix."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from in_process import user_error

from utils.config.command_line import parse_command_line
from utils.distributed import context
from utils.distributed.context import FORK_SAFE, choose_device, number_of_processes
from utils.distributed.launch import launch, run_command


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let torch.cuda answer as with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.parametrize(
    ("count", "name", "local_rank", "expected"),
    [
        (4, "auto", 0, "cuda:0"),
        (4, "cuda", 3, "cuda:3"),
        (4, "cuda:1", 0, "cuda:1"),
        (1, "auto", 3, "cuda:0"),  # srun --gpus-per-task=1 shows each task its own alone
        (0, "cpu", 3, "cpu"),
        (4, "cpu", 3, "cpu"),
        (4, "auto", 4, "process 4 of this machine has no GPU of its own, there are 4; start as"),
        (4, "cuda:4", 0, "--device cuda:4: there is none here"),
        (0, "cuda", 0, "--device cuda: there is none here; use --device auto"),
        (1, "mps", 0, "--device mps: there is none here"),
        (1, "gpu", 0, "--device gpu: unknown; use auto, cpu, cuda, cuda:1 or mps"),
        (1, "meta", 0, "--device meta: unknown"),
    ],
)
def test_which_device(
    count: int, name: str, local_rank: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, count)
    if " " in expected:
        assert user_error(choose_device, name, local_rank).startswith(expected)
    else:
        assert choose_device(name, local_rank) == torch.device(expected)


@pytest.mark.parametrize(
    ("count", "nproc", "name", "expected"),
    [
        (4, 0, "auto", 4),
        (4, 2, "cuda", 2),
        (4, 0, "cuda:1", 1),
        (0, 3, "auto", 3),
        (4, 12, "cpu", 12),
        (4, 5, "auto", "only 4 cuda"),
        (4, 2, "cuda:1", "only 1 cuda"),
        (4, 13, "cpu", "take at most 12"),
    ],
)
def test_how_many_processes(
    count: int, nproc: int, name: str, expected: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, count)
    monkeypatch.setattr(context, "usable_cores", lambda: 3)
    if isinstance(expected, str):
        assert expected in user_error(number_of_processes, nproc, name)
    else:
        assert number_of_processes(nproc, name) == expected


def test_processes_on_one_gpu() -> None:
    context.require_own_gpus(["a", "b", "c"])
    message = user_error(context.require_own_gpus, ["a", "b", "b"])
    assert message.startswith("processes 1 and 2 have the same GPU")


@pytest.mark.filterwarnings("ignore:CUDA initialization")
def test_auto_with_a_broken_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def is_available() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver\nis too old (found", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(context, "GPU_FILES", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choose_device("auto") == torch.device("cpu")  # no GPU in the machine
    (tmp_path / "nvidia0").touch()
    message = user_error(choose_device, "auto")
    assert "(CUDA initialization: The NVIDIA driver is too old)" in message
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert choose_device("auto") == torch.device("cpu")


def test_a_gpu_that_torch_has_no_kernels_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def ones_fail(*_: object, device: torch.device) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available for execution\nCompile with")

    pretend_gpus(monkeypatch, 1)
    monkeypatch.setattr(torch, "ones", ones_fail)
    config = parse_command_line(["."], "main_free", "")
    assert run_command(lambda: launch(lambda config, context: None, config)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cuda:0 cannot compute (CUDA error: no kernel image is")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory(error: Exception, capsys: pytest.CaptureFixture) -> None:
    def work(config: object, context: object) -> None:
        raise error

    words = [".", "--device", "cpu"]
    for command, flags, setting, precision in (
        ("main_free", [], "DATA.batch_size", "TRAIN.precision"),
        ("main_free", ["-e", "--pretrained"], "EVAL.batch_size", "EVAL.precision"),
    ):
        config = parse_command_line([*words, *flags], command, "")
        assert run_command(lambda config=config: launch(work, config)) == 2
        line = capsys.readouterr().err
        advice = f"lower {setting} or the crop, or use {precision} bf16\n"
        assert line == f"error: out of memory on cpu; {advice}"


def test_memory_of_infiniband_is_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set for NCCL before it starts; what a user has set stays."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("that is enough")

    monkeypatch.setattr(context.distributed, "init_process_group", refuse)
    monkeypatch.setenv(FORK_SAFE[0], "0")
    for name in FORK_SAFE[1:]:
        monkeypatch.setenv(name, "")  # so that it is as before at the end
        monkeypatch.delenv(name)
    with pytest.raises(RuntimeError, match="that is enough"):
        context.init("cpu", 0, 2, 0, "file:///nowhere")
    assert [os.environ[name] for name in FORK_SAFE] == ["0", "1", "1"]
