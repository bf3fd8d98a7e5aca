"""Batches of work in processes of their own, with bounded memory and a clean end."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from tqdm import tqdm

from utils.errors import UserError


def in_parallel(
    function: Callable[[list], Any], batches: Iterable[list], workers: int
) -> Iterator[tuple[int, Any]]:
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
    with processes(function, workers) as connections:
        busy: dict[Connection, list] = {}

        def give_work(connection: Connection) -> None:
            busy.pop(connection, None)
            if batch := next(batches, None):
                connection.send(batch)
                busy[connection] = batch

        for connection in connections:
            give_work(connection)
        while busy:
            for connection in wait(list(busy)):
                batch = busy[connection]
                try:
                    result = connection.recv()
                except (EOFError, OSError) as error:
                    raise UserError(
                        f"a process died between {batch[0]} and {batch[-1]}; look at those, or use"
                        " fewer processes if the memory was too small"
                    ) from error
                if isinstance(result, Exception):
                    raise result
                give_work(connection)
                yield len(batch), result


def image_bar(what: str, total: int | None = None) -> tqdm:
    """A progress bar over images; in a log, where nobody watches, it is drawn seldom."""
    interval = 0.1 if sys.stderr.isatty() else 5
    return tqdm(desc=what, total=total, unit=" images", mininterval=interval)


@contextmanager
def processes(function: Callable[[list], Any], workers: int) -> Iterator[list[Connection]]:
    """Processes that answer with a function, as one connection each; all are gone at the end.

    They are spawned, since forking a process that has threads is unsafe, and hold no end of each
    other's pipes, so that they end by themselves even when this process is killed.
    """
    context = multiprocessing.get_context("spawn")
    started, connections = [], []
    try:
        # Ctrl-C reaches the whole process group. The mask is inherited: only we answer it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=answer, args=(function, theirs), daemon=True)
                process.start()
                theirs.close()
                started.append(process)
                connections.append(ours)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield connections
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def answer(function: Callable[[list], Any], connection: Connection) -> None:
    """Receive batches and send back the function's results, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    with suppress(EOFError, OSError):
        while True:
            batch = connection.recv()
            try:
                result = function(batch)
            except Exception as error:  # raised again in the parent
                result = error
            connection.send(result)
