"""One message, the right exit status, and nothing left running, however a command ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import settings
from in_process import call, only_error
from processes import (
    MARK,
    Running,
    started,
    survivors,
    until,
)

from utils.distributed.launch import OwnUserError, run_command
from utils.distributed.processes import raise_cause
from utils.distributed.signals import StoppedAtOnce
from utils.errors import Interrupted, SharedUserError, UserError

pytestmark = pytest.mark.slow

TRAINING = settings(TRAIN__epochs=4, DATA__batch_size=8)
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"
)

# A small command: two processes, each with a reading process, one of which does what it is told.
SMALL = """
    import multiprocessing, os, signal, sys, time
    from types import SimpleNamespace

    from utils.distributed.launch import launch, run_command
    from utils.distributed.signals import leave_to_parent
    from utils.errors import UserError

    def read(parent):
        leave_to_parent()
        while os.getppid() == parent:  # a loader's workers look every five seconds
            time.sleep(0.5)

    def work(config, context):
        reader = multiprocessing.Process(target=read, args=[os.getpid()], daemon=True)
        reader.start()
        print("ready", flush=True)
        context.barrier()
        if context.rank == 1:
            act(config.act)
        context.barrier()

    def act(what):
        if what == "error":
            raise UserError("rank 1 cannot")
        if what == "bug":
            raise KeyError("a bug in rank 1")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "wait":
            time.sleep(600)

    if __name__ == "__main__":
        run = SimpleNamespace(nproc=2, device="cpu")
        config = SimpleNamespace(RUN=run, act=sys.argv[1])
        sys.exit(run_command(lambda: launch(work, config)))
"""


@contextmanager
def small(act: str, tmp_path: Path, mark: str = "none") -> Iterator[Running]:
    """Start the small command."""
    path = tmp_path / "small.py"
    path.write_text(textwrap.dedent(SMALL))
    with started([sys.executable, path, act], tmp_path, **{MARK: mark}) as running:
        yield running


@pytest.fixture
def mark() -> Iterator[str]:
    """Marks the processes of a test; none of them may be left some seconds after it."""
    mark = uuid.uuid4().hex
    yield mark
    wait_for_none(mark)


def wait_for_none(mark: str, seconds: float = 10) -> None:
    """The processes with this mark are gone, or will be in no time."""
    deadline = time.monotonic() + seconds
    while (left := survivors(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


@needs_proc
def test_a_user_error_of_one_process(tmp_path: Path, mark: str) -> None:
    """Such as an image that it cannot read: one line, and its peers end."""
    with small("error", tmp_path, mark) as running:
        done = running.end()
        wait_for_none(mark)
    assert (done.status, done.err) == (2, "error: rank 1 cannot\n")


@needs_proc
def test_a_process_that_is_killed(tmp_path: Path, mark: str) -> None:
    with small("kill", tmp_path, mark) as running:
        done = running.saw("ready", times=2).end()
        wait_for_none(mark)  # before `started` kills what is left
    assert done.status == 1
    assert done.err == (
        "error: process 1 was killed by SIGKILL, perhaps for lack of memory; its peers were ended\n"
    )


def test_a_bug_keeps_its_traceback_once(tmp_path: Path) -> None:
    with small("bug", tmp_path) as running:
        done = running.end()
    assert done.status == 1
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert done.err.count("Traceback") == 1
    assert done.err.endswith("KeyError: 'a bug in rank 1'\n")


CRASH = """
import sys
import lib.algorithm.training, main_free

def crash(model):
    raise KeyError("a bug in a step")

lib.algorithm.training.project_heads_ = crash
sys.exit(main_free.main(sys.argv[1:]))
"""


@needs_proc
def test_a_bug_does_not_wait_for_the_readers(tmp_path: Path, digits: Path, mark: str) -> None:
    """Its traceback keeps the loader; the readers ignore the signal that Python ends them by."""
    words = [sys.executable, "-c", CRASH, digits, *settings(DATA__workers=1)]
    with started(words, tmp_path, **{MARK: mark}) as running:
        done = running.end()
    assert done.status == 1
    assert done.err.count("KeyError: 'a bug in a step'") == 1


@needs_proc
def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path, mark: str) -> None:
    with small("wait", tmp_path, mark) as running:
        running.saw("ready", times=2)
        assert len(survivors(mark)) >= 5  # the command, two processes, their readers
        assert running.send(signal.SIGKILL).end().status == -signal.SIGKILL
        wait_for_none(mark)


@needs_proc
@pytest.mark.parametrize(
    ("number", "everyone"), [(signal.SIGINT, True), (signal.SIGHUP, True), (signal.SIGTERM, False)]
)
def test_signals_while_processes_start_or_wait(
    number: int, everyone: bool, tmp_path: Path, mark: str
) -> None:
    """All get it while they import; SIGTERM, to the command alone, while they wait."""
    with small("wait", tmp_path, mark) as running:
        if everyone:
            until(lambda: len(survivors(mark)) > 2, running, "processes")
        else:
            running.saw("ready", times=2)
        done = running.send(number, everyone).end()
        wait_for_none(mark)
    assert done.status == 128 + number
    assert done.err == f"stopped by {number.name}\n"


# The parts


def ends(error: BaseException | None) -> None:
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, 0, ""),
        (UserError("wrong"), 2, "error: wrong\n"),
        (UserError("wrong\nalso wrong"), 2, "error: wrong\nerror: also wrong\n"),
        (Interrupted(signal.SIGINT), 130, ""),  # who saved has said so
        (Interrupted(signal.SIGTERM), 143, ""),
        (StoppedAtOnce(signal.SIGTERM), 143, "stopped by SIGTERM\n"),
        (
            RuntimeError("gloo: Connection closed by peer [127.0.0.1]:4"),
            1,
            "error: another process has ended, or its machine cannot be reached\n",
        ),
    ],
)
def test_exit_statuses(
    error: BaseException | None, status: int, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert run_command(lambda: ends(error)) == status
    assert tuple(capsys.readouterr()) == ("", message)


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR is 'missing'"),
        ({"RANK": "x", "WORLD_SIZE": "1"}, "RANK is 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
    ],
)
def test_a_launcher_that_says_too_little(
    variables: dict[str, str], name: str, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert name in only_error(call("main_free.py", digits, *settings()))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "stopped by SIGTERM; what was saved is intact. Resume with --resume auto\n"),
        ([("said", Interrupted(signal.SIGTERM))], ""),  # the first process has had its say
    ],
)
def test_a_stop_that_the_first_process_knows_nothing_of(
    others: list, message: str, capsys: pytest.CaptureFixture
) -> None:
    reports = multiprocessing.SimpleQueue()
    for report in [("stopped", Interrupted(signal.SIGTERM)), *others]:
        reports.put(report)
    with pytest.raises(Interrupted):
        raise_cause({1: 143}, [], reports, [])
    assert capsys.readouterr().out == message


def test_bugs_are_raised() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        run_command(lambda: ends(RuntimeError("a bug")))


@pytest.mark.parametrize(
    ("error", "speakers"),
    [
        (UserError("before they met"), [(0, 0), (2, 0)]),  # once on each machine
        (SharedUserError("all have it"), [(0, 0)]),
        (OwnUserError("one has it"), [(0, 0), (1, 1), (2, 0), (3, 1)]),
        (RuntimeError("Connection reset by peer"), [(0, 0), (2, 0)]),
        (StoppedAtOnce(signal.SIGINT), [(0, 0)]),
    ],
)
def test_who_speaks_under_torchrun(
    error: BaseException,
    speakers: list[tuple[int, int]],
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two machines with two processes each: (rank, local rank) of those that say it."""
    spoke = []
    for place in ((0, 0), (1, 1), (2, 0), (3, 1)):
        monkeypatch.setenv("RANK", str(place[0]))
        monkeypatch.setenv("LOCAL_RANK", str(place[1]))
        run_command(lambda: ends(error))
        if capsys.readouterr().err:
            spoke.append(place)
    assert spoke == speakers
    assert os.environ["RANK"] == "3"
