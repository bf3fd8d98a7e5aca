"""Commands in processes of their own: started quickly, watched, sent signals, compared."""

import csv
import faulthandler
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from itertools import chain
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

from lib.data.datasets import DistributedBatchSampler
from lib.data.folders import read_split
from tests.commands import ROOT, environment
from tests.in_process import Done as Done
from utils.distributed import context as distributed

LONGEST_WAIT = 180.0  # seconds; far more than anything here takes
MARK = "PROCESSES_OF_THIS_TEST"


class Running:
    """A command under way, in a session and process group of its own."""

    def __init__(self, process: Any, out: Path, err: Path) -> None:
        self.process, self.out, self.err = process, out, err

    @property
    def pid(self) -> int:
        return self.process.pid

    def status(self) -> int | None:
        """The exit status, or None while it runs."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll()
        return self.process.exitcode

    def saw(self, pattern: str, times: int = 1) -> "Running":
        """Wait until stdout has matched a pattern so many times."""
        until(lambda: len(re.findall(pattern, self.out.read_text())) >= times, self, pattern)
        return self

    def send(self, signum: int, everyone: bool = False) -> "Running":
        """Send a signal, as a terminal and batch systems do to all of the group."""
        os.killpg(self.pid, signum) if everyone else os.kill(self.pid, signum)
        return self

    def end(self) -> Done:
        """Wait for the end."""
        until(lambda: self.status() is not None, self, "end")
        return Done(self.status() or 0, self.out.read_text(), self.err.read_text())


def until(condition: Callable[[], bool], running: Running, what: str) -> None:
    """Wait for a condition while a command is running."""
    deadline = time.monotonic() + LONGEST_WAIT
    while not condition():
        if time.monotonic() > deadline:
            running.send(signal.SIGUSR2)  # `main_of` makes it say where it is
            time.sleep(1)
            said = running.out.read_text()[-2000:], running.err.read_text()
            raise AssertionError(f"waited too long for {what}: {said}")
        if running.status() is not None and not condition():
            raise AssertionError(f"ended without {what}: {running.end()}")
        time.sleep(0.01)


@contextmanager
def started(words: Sequence[object], cwd: Path, **env: str) -> Iterator[Running]:
    """Start a command line; whatever is left of it is killed at the end of the block."""
    out, err = outputs(cwd)
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        env=environment(**env),
        stdout=out.open("wb"),
        stderr=err.open("wb"),
        start_new_session=True,
        preexec_fn=heed_hangup,
    )
    try:
        yield Running(process, out, err)
    finally:
        kill_group(process.pid)
        process.wait()


@contextmanager
def forked(name: str, *arguments: object, cwd: Path, **env: str) -> Iterator[Running]:
    """Start a script's or module's main() in a fork of what has imported it: in no time."""
    out, err = outputs(cwd)
    words = [str(argument) for argument in arguments]
    process = nursery().Process(target=main_of, args=(name, words, cwd, env, out, err))
    process.start()
    try:
        yield Running(process, out, err)
    finally:
        if process.exitcode is None:  # its number may be another process's otherwise
            kill_group(process.pid)
            process.kill()
            process.join()


def heed_hangup() -> None:
    """What runs the tests may ignore SIGHUP, as nohup does, and processes inherit that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def outputs(cwd: Path) -> tuple[Path, Path]:
    """New files for stdout and stderr."""
    stem = cwd / f"output-{uuid.uuid4().hex}"
    paths = stem.with_suffix(".out"), stem.with_suffix(".err")
    for path in paths:
        path.touch()
    return paths


def kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def nursery() -> Any:
    """What starts processes by forking one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    modules = ["pytest", "main_free", "evaluate", "lib.training.run", "lib.evaluation.run"]
    context.set_forkserver_preload([*modules, "processes"])
    before = dict(os.environ)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    os.environ.update(PYTHONPATH=paths, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def main_of(
    name: str, arguments: list[str], cwd: Path, env: dict[str, str], out: Path, err: Path
) -> None:
    """The process of `forked`."""
    os.setsid()
    heed_hangup()
    os.chdir(cwd)
    os.environ.update(env)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    faulthandler.register(signal.SIGUSR2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # as in a process that was just started
    sys.exit(import_module(name.removesuffix(".py")).main(arguments))


@contextmanager
def launching(
    world_size: int, name: str, *arguments: object, cwd: Path | list[Path]
) -> Iterator[list[Running]]:
    """Start a script's main() in forks that find themselves in the environment that torchrun sets.

    Args:
        cwd: one folder, or one for each process as for machines that share no disk.
    """
    folders = cwd if isinstance(cwd, list) else [cwd] * world_size
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        runnings = []
        for rank, folder in enumerate(folders):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            command = forked(name, *arguments, cwd=folder, **place, **address)
            runnings.append(stack.enter_context(command))
        yield runnings


def launched(world_size: int, name: str, *arguments: object, cwd: Path | list[Path]) -> list[Done]:
    """What `launching` comes to."""
    with launching(world_size, name, *arguments, cwd=cwd) as runnings:
        return [running.end() for running in runnings]


def gang(count: int, work: Callable[..., Any], *arguments: Any, folder: Path) -> list[Any]:
    """What `work(context, *arguments)` returns in each of so many processes that have met."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        members = [
            nursery().Process(target=member, args=(place, rank, count, work, arguments))
            for rank in range(count)
        ]
        for process in members:
            process.start()
        for process in members:
            process.join(LONGEST_WAIT)
        assert [process.exitcode for process in members] == [0] * count
        return [pickle.loads(Path(place, str(rank)).read_bytes()) for rank in range(count)]


def member(
    place: str, rank: int, count: int, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """One process of `gang`."""
    torch.set_num_threads(1)
    context = distributed.init("cpu", rank, count, rank, f"file://{place}/rendezvous")
    Path(place, str(rank)).write_bytes(pickle.dumps(work(context, *arguments)))
    distributed.destroy()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def survivors(mark: str) -> list[str]:
    """Command lines of living processes that were started with MARK=mark in their environment."""
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                lines.append(f"{folder.name} {(folder / 'cmdline').read_bytes()!r}")
    return lines


def children_of(pid: int) -> list[int]:
    """Numbers of the processes that a process has started."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def image_of_rank_1(data: Path, minibatch: int) -> Path:
    """The image that the second of two processes reads first in a minibatch of 16 images."""
    tree = read_split(str(data), "train")
    _, share = list(DistributedBatchSampler(len(tree.files), 16, 1, 2, seed=0))[minibatch]
    return Path(tree.root) / tree.files[share[0]]


def the_run(cwd: Path = Path()) -> Path:
    """The only run folder under cwd."""
    (folder,) = (cwd / "trained_models").iterdir()
    return folder


def rows_of(path: Path, without: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file, some columns left out."""
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a training leaves but the time it took, by name."""
    content = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    best = torch.load(folder / "model_best.pth.tar", weights_only=True)
    momentum = content["optimizer"]["state"]
    parts = {f"weights {key}": value for key, value in content["state_dict"].items()}
    parts |= {f"best {key}": value for key, value in best["state_dict"].items()}
    parts |= {f"momentum {key}": value["momentum_buffer"] for key, value in momentum.items()}
    average = content["training"].get("ema", {}).get("state_dict", {})
    parts |= {f"average {key}": value for key, value in average.items()}
    for key in ("noise", "epoch", "position", "best", "totals", "random_state"):
        parts[key] = content["training"][key]
    tables = folder.glob("gradient_norms.csv"), folder.glob("attack_*_images.csv")
    for path in (folder / "metrics.csv", *chain(*tables)):
        parts[path.name] = rows_of(path, ("seconds", "images_per_second"))
    return parts


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same to the last bit in two outcomes."""
    assert one.keys() == other.keys()

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return [name for name in one if not same(one[name], other[name])]
