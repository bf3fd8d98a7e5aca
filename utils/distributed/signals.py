"""What signals do: they end a command at once, or ask a training to save first."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from utils.errors import Interrupted

# Those that this system has; the latter are what batch systems send ahead of a time limit.
STOP_SIGNALS = {s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGHUP")}
SAVE_SIGNALS = {s for s in signal.Signals if s.name in ("SIGUSR1", "SIGUSR2", "SIGXCPU")}
SIGNALS = STOP_SIGNALS | SAVE_SIGNALS
DUPLICATE_SECONDS = 1.0  # a launcher forwards the Ctrl-C that the terminal has sent already
NEVER = float("-inf")

Handler = Callable[[int, FrameType | None], Any] | int


@contextmanager
def handling(numbers: Iterable[int], handler: Handler) -> Iterator[None]:
    """Handle signals until the end of the block; SIGHUP stays ignored under nohup."""
    before = {}
    try:
        for number in numbers:
            current = signal.getsignal(number)
            if (signal.Signals(number).name, current) != ("SIGHUP", signal.SIG_IGN):
                before[number] = current or signal.SIG_DFL
                signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Within the block the stop signals raise `Interrupted`, and those to save do nothing."""
    raised_at = NEVER

    def stop(signum: int, _: FrameType | None) -> None:
        nonlocal raised_at
        if time.monotonic() - raised_at > DUPLICATE_SECONDS:
            raised_at = time.monotonic()
            raise Interrupted(signum)

    def unraisable(lost: Any) -> None:
        nonlocal raised_at
        if isinstance(lost.exc_value, Interrupted):  # a destructor was running, and swallows it
            raised_at = NEVER
            again = (os.getpid(), lost.exc_value.signum)
            threading.Timer(0.05, os.kill, again).start()
        elif raised_at == NEVER:  # after a stop, destructors may find things half made
            previous(lost)

    previous, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        with handling(STOP_SIGNALS, stop), handling(SAVE_SIGNALS, signal.SIG_IGN):
            yield
    finally:
        sys.unraisablehook = previous


@contextmanager
def block_signals() -> Iterator[None]:
    """Keep signals pending, also in processes started within, which call `unblock_signals`."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        resource_tracker.ensure_running()  # which SIGHUP would end
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # starting it has unblocked some
    try:
        yield
    finally:
        unblock_signals()


def unblock_signals() -> None:
    """Receive signals, those first that are pending."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore_signals(_: int = 0) -> None:
    """Ignore signals, which reach all processes, in one that its parent needs and ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class SignalRequests:
    """What signals, handled by `note`, ask for: to save and stop, or to save alone.

    A second Ctrl-C stops at once, without saving: the last checkpoint is intact.
    """

    def __init__(self) -> None:
        self.stop = 0  # the first signal that asks to stop
        self.save = False
        self.since = 0.0

    def note(self, signum: int, _: FrameType | None) -> None:
        """Remember a signal."""
        if signum in SAVE_SIGNALS:
            self.save = True
            if signal.Signals(signum).name == "SIGXCPU":  # which comes every second from now on
                signal.signal(signum, signal.SIG_IGN)
        elif not self.stop:
            self.stop, self.since = signum, time.monotonic()
        elif time.monotonic() - self.since > DUPLICATE_SECONDS:
            raise Interrupted(signum)
