"""One message, the right exit status, and nothing left running, however a command ends."""

import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import environment, settings
from in_process import call, only_error
from processes import MARK, Running, started, survivors, until

from utils.distributed.launch import lost_peer, run_command
from utils.errors import Interrupted, UserError

TRAINING = settings(TRAIN__epochs=4, DATA__batch_size=8)
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"
)

# A small command: two ranks, each with a worker, one of which does what it is told.
SMALL = """
    import multiprocessing, os, signal, sys, time
    from types import SimpleNamespace

    from utils.distributed.launch import launch, run_command
    from utils.distributed.signals import SIGNALS, SignalRequests, handling, ignore_signals
    from utils.errors import Interrupted, UserError

    def read(parent):
        ignore_signals()
        while os.getppid() == parent:  # a loader's workers look every five seconds
            time.sleep(0.5)

    def work(config, context):
        multiprocessing.Process(target=read, args=[os.getpid()], daemon=True).start()
        print("ready", flush=True)
        context.barrier()
        if config.act == "save":
            save(context)
        if context.rank == 1:
            act(config.act)
        context.barrier()

    def save(context):
        requests = SignalRequests()
        with handling(SIGNALS, requests.note):
            while not context.max(requests.stop):
                time.sleep(0.01)
                if requests.save:
                    requests.save = print(f"rank {context.rank} saves", flush=True)
            if context.rank == 0:
                time.sleep(8)  # longer than ranks have after another failure
                print("saved", flush=True)
            raise Interrupted(context.max(requests.stop), said=True)

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


@pytest.fixture
def mark() -> Iterator[str]:
    """Marks the processes of a test; none of them may be left some seconds after it."""
    mark = uuid.uuid4().hex
    yield mark
    wait_for_none(mark)


def wait_for_none(mark: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while (left := survivors(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


@contextmanager
def small(act: str, tmp_path: Path, mark: str) -> Iterator[Running]:
    """Start the small command."""
    path = tmp_path / "small.py"
    path.write_text(textwrap.dedent(SMALL))
    with started([sys.executable, path, act], tmp_path, **{MARK: mark}) as running:
        yield running


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(
    ("act", "status", "first_line", "last_line"),
    [
        ("error", 2, "error: rank 1 cannot", ""),
        ("kill", 1, "error: process 1 was killed by SIGKILL, perhaps for lack of memory; its", ""),
        ("bug", 1, "Traceback (most recent call last):", "KeyError: 'a bug in rank 1'"),
    ],
)
def test_one_rank_fails(
    act: str, status: int, first_line: str, last_line: str, tmp_path: Path, mark: str
) -> None:
    with small(act, tmp_path, mark) as running:
        done = running.saw("ready", times=2).end()
        wait_for_none(mark)  # before `started` kills what is left
    lines = done.err.splitlines()
    assert done.status == status
    assert lines[0].startswith(first_line)
    assert lines[-1].endswith(last_line)
    assert done.err.count("Traceback") == (act == "bug")
    assert len(lines) == 1 or act == "bug"


CRASH = """
import sys
import lib.algorithm.training, main_free

def crash(model):
    raise KeyError("a bug in a step")

lib.algorithm.training.project_heads_ = crash
sys.exit(main_free.main(sys.argv[1:]))
"""


@pytest.mark.slow
@needs_proc
def test_a_bug_does_not_wait_for_the_workers(tmp_path: Path, digits: Path, mark: str) -> None:
    """Its traceback keeps the loader; the workers ignore the signal that Python ends them by."""
    words = [sys.executable, "-c", CRASH, digits, *settings(DATA__workers=1)]
    with started(words, tmp_path, **{MARK: mark}) as running:
        done = running.end()
    assert done.status == 1
    assert done.err.count("KeyError: 'a bug in a step'") == 1


@pytest.mark.slow
@needs_proc
def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path, mark: str) -> None:
    with small("wait", tmp_path, mark) as running:
        running.saw("ready", times=2)
        assert len(survivors(mark)) >= 5  # the command, two ranks, their workers
        assert running.send(signal.SIGKILL).end().status == -signal.SIGKILL
        wait_for_none(mark)


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(
    ("number", "everyone"), [(signal.SIGINT, True), (signal.SIGHUP, True), (signal.SIGTERM, False)]
)
def test_signals_while_ranks_start_or_wait(
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
    assert done.err == f"stopped by {signal.Signals(number).name}\n"


@pytest.mark.slow
@needs_proc
def test_all_ranks_get_signals_and_time_to_save(tmp_path: Path, mark: str) -> None:
    with small("save", tmp_path, mark) as running:
        running.saw("ready", times=2)
        time.sleep(1)
        for times, number in enumerate((signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU), 1):
            running.send(number).saw("rank 0 saves", times).saw("rank 1 saves", times)
        done = running.send(signal.SIGTERM).end()
    assert (done.status, done.err) == (143, "")
    assert done.out.endswith("saved\n")


# The parts


def ends(error: BaseException | None) -> None:
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, 0, ""),
        (UserError("wrong\nalso wrong"), 2, "error: wrong\nerror: also wrong\n"),
        (Interrupted(signal.SIGINT, said=True), 130, ""),
        (Interrupted(signal.SIGTERM), 143, "stopped by SIGTERM\n"),
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


def test_a_lost_peer_is_told_from_other_errors() -> None:
    for text in (
        "[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:8351: Connection reset by peer",
        "NCCL error: remote process exited or there was a network error",
        "writev [10.0.0.1]: Broken pipe",
        "NCCL communicator was aborted on rank 1.",
    ):
        assert lost_peer(RuntimeError(text))
    assert not lost_peer(KeyError("closed by peer"))
    with pytest.raises(RuntimeError, match="a bug"):
        run_command(lambda: ends(RuntimeError("a bug")))


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "no MASTER_ADDR, MASTER_PORT: start"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK 1 is none of WORLD_SIZE 1"),
        ({"RANK": "a", "WORLD_SIZE": "1"}, "RANK of the environment: 'a' is not a number; start"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "65536"}, "MASTER_PORT of the environm"),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_MAX_RESTARTS": "3"},
            "needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        ),
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


# Standard streams that are closed, full or for ASCII alone end no command

PRINTS = """
import sys
from pathlib import Path
from utils.distributed.launch import run_command
from utils.logging import Logger, ProgressBar

def work():
    logger = Logger()
    logger.write_to(Path("log.txt"))
    logger.heading("caf\\u00e9 \\udcff")
    for _ in ProgressBar(logger, 3, "epoch", 1).over(range(3)):
        print("x" * 100_000)
    print("said", file=sys.stderr)
    Path("done").write_text(str(sys.stdout.isatty()))
    return 7

sys.exit(run_command(work))
"""


@pytest.mark.parametrize(
    ("redirections", "encoding"),
    [
        ("0<&- >&- 2>&-", "utf-8"),
        ("> /dev/full 2>&-", "ascii"),
        ("| head -n 1 > /dev/null; exit ${PIPESTATUS[0]}", "utf-8"),
        ("> out.txt", "ascii:strict"),
    ],
)
def test_the_work_outlives_its_streams(redirections: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(PRINTS)
    line = f"{sys.executable} prints.py {redirections}"
    environ = environment(PYTHONIOENCODING=encoding)
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environ, timeout=60)
    assert done.returncode == 7
    assert (tmp_path / "done").read_text() == "False"
    log = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert log[0].endswith("== café \\udcff")
    assert [text.split()[3] for text in log[1:]] == ["[1/3]", "[2/3]", "[3/3]"]
    assert all("x" not in text.split(maxsplit=2)[2] for text in log)  # no output went astray
