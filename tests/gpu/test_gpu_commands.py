"""Batches, commands and processes on a GPU."""

import json
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import distributed

from lib.data.datasets import DistributedBatchSampler, ImageBatches, train_transform
from lib.data.folders import read_tree
from lib.data.loader import Loader, on_device, to_device
from lib.evaluation.load_model import ModelSettings, model_of
from lib.training.checkpointing import restore_state
from tests.commands import command, settings
from tests.ddp_steps import train_two_steps
from tests.gpu.scale import CPU, Scale, checked, trainer_of, write_images
from tests.in_process import call, only_error
from tests.processes import nursery, started, the_run, until
from utils.config.load import merge
from utils.distributed.context import DistributedContext
from utils.logging import Logger
from utils.storage.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR of 64 training and 32 validation images."""
    return write_images(tmp_path_factory.mktemp("images") / "data", {"train": 16, "val": 8})


@checked(cpu=False)
def test_batches_arrive_whole(scale: Scale, data: Path) -> None:
    """While the loop is ahead of the device and memory is given on; none is kept."""
    dataset = ImageBatches([read_tree(str(data / "train"))], train_transform(112), 112, seed=0)
    order = DistributedBatchSampler(64, 16, seed=0)
    loader = Loader(dataset, order, 2, scale.device)
    weights, reserved = torch.arange(1.0, 113, dtype=torch.float64), []
    factors = weights.to(scale.device)
    for number in range(30):
        order.set_position(number)
        sums = []
        for batch in on_device(loader, scale.device):
            torch.cuda._sleep(2_000_000)  # a millisecond
            sums.append((batch.images.double() * factors).sum())
            numbers = batch.images.numel()
            del batch
            for divisor in (1, 2, 3):  # what was freed goes to others at once
                torch.full((numbers // divisor,), -1.0, device=scale.device)
        batches = [dataset.__getitems__(keys) for keys in order]
        expected = [to_device(batch, CPU.device).images for batch in batches]
        wanted = torch.stack([(images.double() * weights).sum() for images in expected])
        torch.testing.assert_close(torch.stack(sums).cpu(), wanted)
        assert torch.equal(to_device(batches[0], scale.device).images.cpu(), expected[0])
        reserved.append(torch.cuda.memory_reserved())
    loader.kill_workers()
    assert reserved[-1] <= reserved[9]


@checked(cpu=False)
def test_state_goes_to_every_device(
    scale: Scale, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR1 saves, SIGTERM saves and ends; what it leaves is restored bit by bit and resumed."""
    monkeypatch.chdir(tmp_path)
    words = [data, "--device", scale.device.type, *settings(TRAIN__epochs=20)]
    with started(command("main_free.py", *words), tmp_path) as running:
        running.saw(r"epoch 1/\d+ \[1/").send(signal.SIGUSR1)
        until(lambda: any(tmp_path.rglob("checkpoint.pth.tar")), running, "a checkpoint")
        assert running.status() is None
        done = running.send(signal.SIGTERM).end()
    assert (done.status, done.err) == (143, "")
    checkpoint = read_checkpoint(str(the_run() / "checkpoint.pth.tar"))
    state, momentum = checkpoint.training, checkpoint.content["optimizer"]["state"]
    assert state is not None
    assert state["noise"].abs().max() > 0
    for other in (scale, CPU):
        model = model_of(checkpoint, ModelSettings(**checkpoint.content["model"]))
        trainer = trainer_of(model, len(state["noise"]), Scale(other.device, "", 32))
        restore_state(checkpoint, trainer, DistributedContext(0, 1, other.device), 0, Logger(False))
        assert torch.equal(trainer.noise.cpu(), state["noise"])
        for n, parameter in enumerate(model.parameters()):
            buffer = trainer.optimizer.state[parameter]["momentum_buffer"]
            assert torch.equal(buffer.cpu(), momentum[n]["momentum_buffer"].cpu())
            assert buffer.stride() == parameter.stride()
    for device, precision, epochs in ((scale.device.type, "fp16", 20), ("cpu", "fp32", 22)):
        changes = settings(TRAIN__epochs=epochs, TRAIN__precision=precision)
        done = call("main_free.py", data, "--device", device, "--resume", "auto", *changes)
        assert done.status == 0, done.err


@checked(cpu=False)
def test_evaluation_counts_as_the_cpus(
    scale: Scale, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet-C of a short training's network, and attacked images; the search is recorded."""
    record = MagicMock(wraps=torch.cuda.make_graphed_callables)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.chdir(tmp_path)
    device = ["--device", scale.device.type]
    assert call("main_free.py", data, *device, *settings(TRAIN__epochs=2)).status == 0
    for severity in range(1, 6):
        write_images(tmp_path / "corrupted" / "fog", {str(severity): 8}, severity)
    words = ["--resume", (the_run() / "model_best.pth.tar").absolute(), "--eva_on_imagenet_c"]
    words += ["--corruptions", "fog", *settings(DATA__imagenet_c=tmp_path / "corrupted")]
    attack = [data, "-e", "--attack", "pgd2,pgd2-margin-r2", "--save_images", 3]
    attack += settings(EVAL__precision="bf16", EVAL__batch_size=8)
    counts = []
    for more in ([*attack, *device], ["--device", "cpu"]):
        done = call("evaluate.py", *more, *words)
        assert done.status == 0, done.err
        (result,) = the_run().glob("imagenet_c*.json")
        counts.append(json.loads(result.read_text())["corruptions"]["fog"]["top1"])
        result.unlink()
    assert counts[0] == counts[1]
    assert record.call_count == 1
    assert len(list(the_run().glob("attack*_images/*.png"))) == 9


@checked(quick=True, cpu=False)
@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--device", "cuda:99"], "--device cuda:99: there is none here"),
        (["--nproc", 99], "--nproc 99: only "),
        (settings(DATA__batch_size=100_000_000), "out of memory on cuda:0"),
    ],
)
def test_errors_in_one_line(
    scale: Scale, data: Path, here: Path, words: list[Any], error: str
) -> None:
    device = [] if "--device" in words else ["--device", "cuda"]
    assert error in only_error(call("main_free.py", data, *device, *settings(), *words))


def train_once(folder: Path, rank: int, count: int, scale: Scale, backend: str) -> None:
    """One process of those on one device, which the suite itself refuses on a GPU."""
    method, minute = f"file://{folder}/group", timedelta(seconds=60)
    distributed.init_process_group(backend, method, minute, rank=rank, world_size=count)
    control = distributed.new_group(backend="gloo", timeout=minute)
    context = DistributedContext(rank, count, scale.device, control)
    config = merge({"TRAIN": {"lr": 1e-3, "arch": scale.arch}})
    found = train_two_steps(context, config)
    np.savez(folder / f"{rank}.npz", said=found["said"], **found["weights"])
    distributed.barrier()
    distributed.destroy_process_group()


@checked(cpu=False)
@pytest.mark.parametrize(("backend", "count"), [("nccl", 1), ("gloo", 2)])
def test_processes_train_as_one(scale: Scale, tmp_path: Path, backend: str, count: int) -> None:
    arguments = count, scale, backend if scale.cuda else "gloo"
    processes = [
        nursery().Process(target=train_once, args=(tmp_path, rank, *arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    config = merge({"TRAIN": {"lr": 1e-3, "arch": scale.arch}})
    alone = train_two_steps(DistributedContext(0, 1, scale.device), config)
    for rank, process in enumerate(processes):
        process.join(120)
        assert process.exitcode == 0
        found = np.load(tmp_path / f"{rank}.npz")
        assert "warn" not in str(found["said"]).lower()
        for name, value in alone["weights"].items():
            assert np.abs(found[name] - value).max() <= 1e-4, name
