"""7. Checkpoints between devices and precisions, and the signals that ask for them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import torch

from lib.evaluation.model_settings import ModelSettings, model_of
from lib.training.restore import restore_state
from tests.gpu_acceptance.checks import Check, at_least, equal
from tests.gpu_acceptance.setting import Setting, trainer_of
from tests.processes import the_run, until
from utils.distributed.context import DistributedContext
from utils.logging import Logger
from utils.storage.checkpoint import read_checkpoint


def checks(setting: Setting) -> Iterator[Check]:
    """SIGUSR1 saves, SIGTERM saves and ends; its state goes to every device and on in fp16."""
    epochs = setting.choose(60, 60, 6)  # a GPU is soon through
    words = setting.training(TRAIN__epochs=epochs)
    with setting.start("main_free.py", *words, cwd=setting.folder) as running:
        running.saw(r"epoch 1/\d+ \[1/").send(signal.SIGUSR1)
        path = the_run(setting.folder) / "checkpoint.pth.tar"
        until(path.exists, running, "a checkpoint after SIGUSR1")
        yield equal("a checkpoint after SIGUSR1, and the training goes on", running.status(), None)
        done = running.send(signal.SIGTERM).end()
    yield equal("exit status after SIGTERM", (done.status, done.err), (143, ""))
    for device in {setting.device, torch.device("cpu")}:
        yield from restored(path, device)
    if setting.cuda:
        for name, more, later in (("fp16", [], 0), ("fp32", ["--device", "cpu"], 2)):
            changes = {"TRAIN__precision": name, "TRAIN__epochs": epochs + later}
            words = setting.training("--resume", "auto", *more, **changes)
            done = setting.run("main_free.py", *words)
            yield equal(f"resumed in {name} {more}", (done.status, done.err), (0, ""))


def restored(path: Path, device: torch.device) -> Iterator[Check]:
    """A trainer of the state of a training, against the file."""
    checkpoint = read_checkpoint(str(path))
    content, state = checkpoint.content, checkpoint.training
    assert state is not None
    batch, _, size, _ = state["noise"].shape
    model = model_of(checkpoint, ModelSettings(**content["model"]))
    trainer = trainer_of(model, device, batch, size)
    context = DistributedContext(0, 1, device)
    with torch.random.fork_rng():
        restore_state(checkpoint, trainer, context, 0, Logger(False))
    yield at_least(f"{device}: noise", trainer.noise.abs().max().item(), 1e-3)
    same = torch.equal(trainer.noise.cpu(), state["noise"])
    yield equal(f"{device}: the noise's bits", same, True)
    saved = content["state_dict"]
    own = trainer.model.state_dict()
    same = all(torch.equal(own[key].cpu(), value) for key, value in saved.items())
    yield equal(f"{device}: the weights' bits", same, True)
    buffers = content["optimizer"]["state"]
    momentum = [(p, trainer.optimizer.state[p]["momentum_buffer"]) for p in model.parameters()]
    same = all(
        torch.equal(buffer.cpu(), buffers[number]["momentum_buffer"].cpu())
        for number, (_, buffer) in enumerate(momentum)
    )
    yield equal(f"{device}: the momentum's bits", same, True)
    strides = sum(buffer.stride() != parameter.stride() for parameter, buffer in momentum)
    yield equal(f"{device}: momentum that lies otherwise than its parameter", strides, 0)
