"""What signals do: they end a command at once, or ask a training to save first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
SAVE_SIGNAL = "SIGUSR1"  # what SLURM is asked to send ahead of its time limit
DUPLICATE_SECONDS = 1.0  # a launcher forwards the Ctrl-C that the terminal has sent already

Handler = Callable[[int, FrameType | None], Any] | int


class StoppedAtOnce(KeyboardInterrupt):
    """A signal ended a command wherever it was; what it had saved by then is kept.

    A KeyboardInterrupt, so that no `except Exception` on the way takes it for an error.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def handling(handlers: Mapping[str, Handler]) -> Iterator[None]:
    """Handle signals, those of them that this system has, until the end of the block.

    Args:
        handlers: by name, such as SIGTERM.
    """
    before = {}
    try:
        for name, handler in handlers.items():
            number = getattr(signal, name, None)
            if number is not None and not ignored_by_nohup(name):
                before[number] = signal.signal(number, handler) or signal.SIG_DFL
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignored_by_nohup(name: str) -> bool:
    """Whether the command was started so that the end of its terminal does not concern it."""
    return name == "SIGHUP" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Within the block the stop signals raise `StoppedAtOnce`, and SIGUSR1 does nothing.

    For work that has nothing to save beyond what is on the disk already.
    """

    raised, caught = threading.Event(), threading.Event()

    def stop(signum: int, _: FrameType | None) -> None:
        raised.set()
        raise StoppedAtOnce(signum)

    def send_again(signum: int) -> None:
        delay = 0.01
        while not caught.wait(delay):
            os.kill(os.getpid(), signum)
            delay = DUPLICATE_SECONDS  # not sooner: on its way up the exception may be waited for

    def lost_exception(lost: Any) -> None:
        if isinstance(lost.exc_value, StoppedAtOnce):
            signum = lost.exc_value.signum
            threading.Thread(target=send_again, args=[signum], daemon=True).start()
        elif not raised.is_set():  # after that, destructors may find things half made
            before(lost)

    # Raised while a destructor runs, an exception goes no further than this hook.
    before, sys.unraisablehook = sys.unraisablehook, lost_exception
    try:
        with handling({**dict.fromkeys(STOP_SIGNALS, stop), SAVE_SIGNAL: signal.SIG_IGN}):
            try:
                yield
            finally:
                caught.set()
    except StoppedAtOnce as error:
        traceback.clear_frames(error.__traceback__)  # runs destructors while the hook is there
        raise
    finally:
        sys.unraisablehook = before


@contextmanager
def holding_back() -> Iterator[None]:
    """Keep signals for later, here and in processes that are started within the block.

    Those let them through by `let_through`, once they can answer; Python's resource tracker, which
    SIGHUP would end, never does.
    """
    change_mask("SIG_BLOCK")
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()
        change_mask("SIG_BLOCK")  # starting the tracker lets SIGINT and SIGTERM through
    try:
        yield
    finally:
        let_through()


def let_through() -> None:
    """Receive signals, those first that were held back."""
    change_mask("SIG_UNBLOCK")


def change_mask(how: str) -> None:
    """Block or unblock the signals of this module, where the system can."""
    if hasattr(signal, "pthread_sigmask"):
        numbers = {getattr(signal, name) for name in (*STOP_SIGNALS, SAVE_SIGNAL)}
        signal.pthread_sigmask(getattr(signal, how), numbers)


def leave_to_parent(_: int = 0) -> None:
    """Ignore signals in a process that its parent ends; a loader's `worker_init_fn`.

    Ctrl-C, a batch system and `timeout` signal all processes of a command, and a training that is
    to finish its step needs its workers until then.
    """
    for name in (*STOP_SIGNALS, SAVE_SIGNAL):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class SignalRequests:
    """Remembers SIGINT, SIGTERM and SIGHUP (save and stop) and SIGUSR1 (save and continue).

    The training loop answers between two minibatches. A second Ctrl-C stops at once, without
    saving: the last checkpoint is intact.

    Attributes:
        stop: the first signal that asks to stop, or 0.
        save: whether a signal asks to save.
    """

    def __init__(self) -> None:
        self.stop = 0
        self.save = False
        self.since = 0.0

    @contextmanager
    def noted(self) -> Iterator[SignalRequests]:
        """Note signals until the end of the block; only in the main thread."""
        with handling(dict.fromkeys((*STOP_SIGNALS, SAVE_SIGNAL), self.note)):
            yield self

    def note(self, signum: int, _: FrameType | None) -> None:
        """Note a signal."""
        if signal.Signals(signum).name == SAVE_SIGNAL:
            self.save = True
        elif not self.stop:
            self.stop, self.since = signum, time.monotonic()
        elif time.monotonic() - self.since > DUPLICATE_SECONDS:
            raise StoppedAtOnce(signum)
