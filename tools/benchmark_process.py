"""A process for each subject of the benchmark: own memory and settings, one at work at a time."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from tools.benchmark_work import Case, Work, prepare
from utils.errors import UserError


class Take(NamedTuple):
    """One timed stretch of work: images and seconds."""

    images: float
    seconds: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


class Subject:
    """A process at work on a case.

    Attributes:
        case: what it is.
        actions: names of what it can do.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        context = new_context()
        self.connection, theirs = context.Pipe()
        usual = multiprocessing.get_start_method()
        self.process = context.Process(target=serve, args=(theirs, case, usual))
        # Ctrl-C is for the command alone, which then closes the pipes.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()
        self.actions: list[str] = []
        self.times: dict[str, int] = {}

    def wait_until_ready(self) -> None:
        """Wait for its preparation and warm-up."""
        self.actions = self.answer()

    def set_length(self, take_seconds: float) -> None:
        """Find out how often it has to do each thing for a take of this length."""
        for action in self.actions:
            self.times[action] = 1
            if self.case.warmed_up:
                self.times[action] = math.ceil(take_seconds / self.take(action).seconds)

    def take(self, action: str) -> Take:
        """Have it do something for a while."""
        self.connection.send((action, self.times[action]))
        return Take(*self.answer())

    def peak_memory(self) -> int:
        """Bytes: of the device's allocator on CUDA, else the most the process ever had resident."""
        self.connection.send(("peak memory", 1))
        return self.answer()

    def answer(self) -> Any:
        """What it says.

        Raises:
            UserError: it failed.
        """
        try:
            value = self.connection.recv()
        except EOFError:
            value = "the process died; there may be too little memory: use a smaller --batch_size"
        if isinstance(value, str):
            raise UserError(f"{self.case.part}, {self.case.name}: {value}")
        return value

    def close(self) -> None:
        """End it, whatever it does."""
        self.connection.close()  # it ends at its next look at the connection
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def new_context() -> Any:
    """Processes that begin with nothing but the imports, which most systems can share."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.benchmark_work"])
    return context


@contextmanager
def subjects(cases: Sequence[Case], take_seconds: float) -> Iterator[list[Subject]]:
    """Processes for these cases, ready to be timed; all ended at the end."""
    running: list[Subject] = []
    try:
        for case in cases:
            running.append(Subject(case))
        for subject in running:
            subject.wait_until_ready()
            say(f"{subject.case.part}, {subject.case.name}: ready")
        for subject in running:  # now that nothing else is at work
            subject.set_length(take_seconds)
        yield running
    finally:
        for subject in running:
            subject.close()


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def serve(connection: Connection, case: Case, method: str) -> None:
    """The process: prepare, warm up, then do what comes over the connection."""
    multiprocessing.set_start_method(method, force=True)  # loaders start workers as anywhere else
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it is not inherited
    try:
        work = prepare(case)
        for action in work.values():
            timed(action, 2 * case.warmed_up, case.device)
        answer: Any = list(work)
        while (order := exchange(connection, answer)) is not None:
            name, times = order
            if name == "peak memory":
                answer = peak_memory(case.device)
                continue
            answer = timed(work[name], times, case.device)
    except Exception as error:
        traceback.print_exc()
        answer = " ".join(str(error).split())[:300] or type(error).__name__
        exchange(connection, answer)


def exchange(connection: Connection, answer: Any) -> tuple[str, int] | None:
    """Answer, and hear what is next; None once the command has no more to ask."""
    try:
        connection.send(answer)
        return connection.recv()
    except (EOFError, OSError):
        return None


def timed(work: Work, times: int, device: str) -> Take:
    """Do work a number of times."""
    synchronise(device)
    start = time.perf_counter()
    images = sum(work() for _ in range(times))
    synchronise(device)
    return Take(images, time.perf_counter() - start)


def synchronise(device: str) -> None:
    """Wait until the device has done what it was told."""
    kind = torch.device(device).type
    if kind != "cpu":
        getattr(torch, kind).synchronize()


def peak_memory(device: str) -> int:
    """Bytes, see `Subject.peak_memory`."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    if os.name != "posix":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)
