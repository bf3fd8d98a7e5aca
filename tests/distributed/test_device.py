"""Devices that are missing, shared, broken or too small: one line each, with the fix."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from utils.config.command_line import parse_command_line
from utils.distributed import context
from utils.distributed.context import (
    FORK_SAFE,
    choose_device,
    number_of_processes,
    require_own_gpus,
)
from utils.distributed.launch import launch, run_command
from utils.errors import SharedUserError, UserError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """So many GPUs as `count` says, for whoever asks torch.cuda."""
    found = SimpleNamespace(count=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found.count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found.count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return found


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
    count: int, name: str, local_rank: int, expected: str, gpus: SimpleNamespace
) -> None:
    gpus.count = count
    if " " not in expected:
        assert choose_device(name, local_rank) == torch.device(expected)
        return
    with pytest.raises(UserError) as caught:
        choose_device(name, local_rank)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("count", "nproc", "name", "expected"),
    [(4, 0, "auto", 4), (4, 2, "cuda", 2), (4, 0, "cuda:1", 1), (0, 3, "auto", 3)],
)
def test_how_many_processes(
    count: int, nproc: int, name: str, expected: int, gpus: SimpleNamespace
) -> None:
    gpus.count = count
    assert number_of_processes(nproc, name) == expected


@pytest.mark.parametrize(
    ("nproc", "name", "words"),
    [
        (5, "auto", "only 4 cuda"),
        (2, "cuda:1", "only 1 cuda"),
        (13, "cpu", "lets 3 cores be used; take at most 12"),
    ],
)
def test_more_processes_than_there_is_room_for(
    nproc: int, name: str, words: str, gpus: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "allowed_cores", lambda: frozenset({1, 4, 5}))
    assert number_of_processes(12, "cpu") == 12
    with pytest.raises(UserError, match=words):
        number_of_processes(nproc, name)


def test_processes_on_one_gpu() -> None:
    require_own_gpus(["a", "b", "c"])
    with pytest.raises(SharedUserError, match="processes 1 and 2 have the same GPU"):
        require_own_gpus(["a", "b", "b"])


@pytest.mark.filterwarnings("ignore:CUDA initialization")
def test_auto_with_a_broken_driver(
    gpus: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def is_available() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver\nis too old (found", stacklevel=1)
        return False

    gpus.count = 0
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(context, "GPU_FILES", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choose_device("auto") == torch.device("cpu")  # no GPU in the machine
    (tmp_path / "nvidia0").touch()
    words = (
        r"cannot use the GPU of this machine \(CUDA initialization: The NVIDIA driver is too old\)"
    )
    with pytest.raises(UserError, match=words):
        choose_device("auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert choose_device("auto") == torch.device("cpu")


def ones_fail(*_: object, device: torch.device) -> torch.Tensor:
    raise RuntimeError("CUDA error: no kernel image is available for execution\nCompile with")


def test_a_gpu_that_torch_has_no_kernels_for(
    gpus: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    gpus.count = 1
    monkeypatch.setattr(torch, "ones", ones_fail)
    config = parse_command_line(["."], "main_free", "")
    assert run_command(lambda: launch(lambda config, context: None, config)) == 2
    assert capsys.readouterr().err == (
        "error: cuda:0 cannot compute (CUDA error: no kernel image is available for execution);"
        " install a torch that is built for it, end what else uses it, or give --device cpu\n"
    )


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

    words = [".", "--device", "cpu", "--set", "DATA.batch_size=96", "--set", "EVAL.batch_size=48"]
    for command, flags, batch, section, setting in (
        ("main_free", [], 96, "TRAIN", "DATA.batch_size"),
        ("main_free", ["-e", "--pretrained"], 48, "EVAL", "EVAL.batch_size"),
    ):
        config = parse_command_line([*words, *flags], command, "")
        assert run_command(lambda config=config: launch(work, config)) == 2
        assert capsys.readouterr().err == (
            f"error: out of memory on cpu with batches of {batch} images a device, DATA.crop_size"
            f" 224 and {section}.precision fp32; lower {setting} or the crop, or use"
            f" {section}.precision bf16\n"
        )


def test_other_errors_keep_their_traceback() -> None:
    def work(config: object, context: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    config = parse_command_line([".", "--device", "cpu"], "main_free", "")
    with pytest.raises(RuntimeError, match="mat1"):
        run_command(lambda: launch(work, config))


def test_memory_of_infiniband_is_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set for NCCL before it starts; what a user has set stays."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("that is enough")

    monkeypatch.setattr(context.distributed, "init_process_group", refuse)
    for name in FORK_SAFE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(FORK_SAFE[0], "0")
    with pytest.raises(RuntimeError, match="that is enough"):
        context.init("cpu", 0, 2, 0, "file:///nowhere")
    assert [os.environ[name] for name in FORK_SAFE] == ["0", "1", "1"]
    for name in FORK_SAFE[1:]:
        monkeypatch.setenv(name, "")  # so that they go again
