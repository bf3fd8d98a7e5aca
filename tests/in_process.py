"""The commands run inside the test's own process, which has imported torch already."""

import contextlib
import io
import resource
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import pytest
import torch

from utils.errors import UserError

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class Done(NamedTuple):
    """What a command left: exit status (negative: the signal that ended it), stdout, stderr."""

    status: int
    out: str
    err: str


def call(script: str, *arguments: object) -> Done:
    """Run a script or a tool in the current folder, on one thread."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), unchanged():
        status = import_module(script.removesuffix(".py")).main([str(a) for a in arguments])
    return Done(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Give signal handlers, torch's threads and its random state back as they were."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can grow beyond this many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def only_error(done: Done) -> str:
    """The message of a command that ended as bad input should: one line, status 2.

    Returns:
        The line on stderr, without `error: `.
    """
    assert done.status == 2, done
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    return done.err.removeprefix("error: ").strip()


def user_error(function: Callable[..., object], *arguments: Any, **named: Any) -> str:
    """The message, one line, of the user error that a call must raise."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message
