"""Work in processes of their own, with bounded memory and a clean end."""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable
from typing import Any

from utils.distributed.signals import SIGNALS, block_signals, unblock_signals
from utils.errors import UserError
from utils.logging import Logger, ProgressBar


def in_parallel(
    function: Callable[[Any], Any], batches: Iterable[Any], workers: int
) -> Generator[Any, None, None]:
    """The results of a function of each batch, as they come."""
    others = multiprocessing.active_children()
    with block_signals():
        pool = multiprocessing.get_context("spawn").Pool(workers, follow_parent)
    processes = [process for process in multiprocessing.active_children() if process not in others]
    with pool:
        results = pool.imap_unordered(function, batches)
        while True:
            try:
                yield results.next(timeout=1.0)
            except StopIteration:
                return
            except multiprocessing.TimeoutError:
                if not all(process.is_alive() for process in processes):
                    raise UserError(
                        "a process died at its work; use fewer if the memory was too small"
                    ) from None


def follow_parent() -> None:
    """In a process of the pool: signals are the parent's matter, but how the pool ends it."""
    for number in SIGNALS:  # ignoring SIGTERM for a moment would lose one that is pending
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    unblock_signals()


def image_bar(label: str, total: int | None = None) -> ProgressBar:
    """Progress over images: a bar on a terminal, a line now and then in a log; on stderr."""
    every = max(1, total // 20) if total else 100_000
    return ProgressBar(Logger(to_stderr=True), total, label, every, "image")
