"""Batches of work in processes of their own, with bounded memory and a clean end."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from utils.distributed.signals import holding_back, leave_to_parent, let_through
from utils.errors import UserError
from utils.logging import Logger, ProgressBar


def in_parallel(
    function: Callable[[list], Any], batches: Iterable[list], workers: int
) -> Generator[tuple[int, Any], None, None]:
    """Apply a function to batches in processes; each process holds one batch at a time.

    Close the iterator (`contextlib.closing`) to end the processes early.

    Args:
        function: of one batch; importable by name. What it raises is raised here.
        batches: taken one by one as processes come free, so a generator is never unrolled.
        workers: number of processes.

    Yields:
        (length of the batch, the function's result) of each batch as it is done.

    Raises:
        UserError: a process died, which neither hides its batch nor hangs.
    """
    batches = iter(batches)
    running: dict[Future, list] = {}
    with process_pool(workers) as pool:

        def submit_next() -> None:
            if batch := next(batches, None):
                with holding_back():  # for the process that this may start
                    running[pool.submit(function, batch)] = batch

        for _ in range(workers):
            submit_next()
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    read = " or ".join(f"between {b[0]} and {b[-1]}" for b in running.values())
                    raise UserError(
                        f"a process died {read}; look at those, or use fewer processes if the"
                        " memory was too small"
                    ) from error
                batch = running.pop(future)
                submit_next()
                yield len(batch), result


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes are killed at the end, or when this process is.

    They are spawned, since forking a process that has threads is unsafe.
    """
    others = multiprocessing.active_children()
    spawn = multiprocessing.get_context("spawn")
    with holding_back():
        pool = ProcessPoolExecutor(workers, spawn, initializer=follow_parent)
    try:
        yield pool
    finally:
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
        pool.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """In a process of the pool: signals are the parent's matter, and its end is ours."""
    leave_to_parent()
    let_through()
    warnings.simplefilter("ignore")
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def image_bar(what: str, total: int | None = None) -> ProgressBar:
    """Progress over images: a bar on a terminal, a line now and then in a log; on stderr."""
    every = max(1, total // 20) if total else 100_000
    return ProgressBar(Logger(to_stderr=True), total, what, every, "image")
