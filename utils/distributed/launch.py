"""Running a command: on one process or many, with one message and the right exit status."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable

from utils.config.settings import Config
from utils.distributed.processes import Worker, end_readers, meet_and_work, run_processes, say_error
from utils.distributed.signals import StoppedAtOnce, stopping_at_once
from utils.errors import Interrupted, SharedUserError, UserError
from utils.streams import lasting_streams


class OwnUserError(UserError):
    """A user error that this process alone has, among those of torchrun."""


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command and say what a user needs to know.

    Returns:
        The exit status: what the command returns, or 0; 2 after a user error, one `error:` line on
        stderr for each cause; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP; 1 where
        another process has failed. Bugs keep their traceback.
    """
    with lasting_streams():
        status = run_and_report(command)
        sys.stdout.flush()
    if status and in_process_group():
        os._exit(status)  # NCCL's destructors would wait for peers, or print what is no news
    return status


def run_and_report(command: Callable[[], int | None]) -> int:
    """Run a command and say what ended it; its exit status."""
    try:
        with stopping_at_once():
            return command() or 0
    except UserError as error:
        if speaks(error):
            say_error(str(error))
        return 2
    except Interrupted as stop:
        return stop.exit_status
    except StoppedAtOnce as stop:
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped by {signal.Signals(stop.signum).name}", file=sys.stderr, flush=True)
        end_readers()
        return 128 + stop.signum
    except Exception as error:
        from utils.distributed.context import lost_peer

        if not lost_peer(error):
            # Its traceback keeps the loaders; Python would wait for readers that ignore SIGTERM.
            end_readers()
            if not in_process_group():
                raise
            traceback.print_exc()
            return 1
        if os.environ.get("LOCAL_RANK", "0") == "0":
            say_error("another process has ended, or its machine cannot be reached")
        return 1


def in_process_group() -> bool:
    """Whether this process has met others."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def speaks(error: UserError) -> bool:
    """Whether it is for this process of torchrun's to say it: one on all, or on each machine."""
    if isinstance(error, SharedUserError):
        return os.environ.get("RANK", "0") == "0"
    return isinstance(error, OwnUserError) or os.environ.get("LOCAL_RANK", "0") == "0"


def launch(worker: Worker, config: Config) -> None:
    """Run `worker(config, context)`: under torchrun as one of its processes, else on every GPU.

    Raises:
        UserError, Interrupted, StoppedAtOnce: what a process raised.
    """
    from utils.distributed.device import number_of_processes

    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        run_under_torchrun(worker, config)
        return
    count = number_of_processes(config.RUN.nproc, config.RUN.device)
    if count == 1:
        meet_and_work(worker, config, 0, 1, 0, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        run_processes(worker, config, count, f"file://{folder}/meeting")


def run_under_torchrun(worker: Worker, config: Config) -> None:
    """Be one of the processes that torchrun (or another launcher) has started.

    Raises:
        UserError: the environment lacks something, --nproc says another number; or the worker's.
    """
    rank, count, local_rank = launcher_numbers()
    if config.RUN.nproc not in (0, count):
        raise UserError(
            f"--nproc {config.RUN.nproc}: torchrun has started {count} processes; leave it out"
        )
    try:
        meet_and_work(worker, config, rank, count, local_rank, "")
    except SharedUserError:
        raise
    except UserError as error:
        raise OwnUserError(str(error)) from error


def launcher_numbers() -> tuple[int, int, int]:
    """RANK, WORLD_SIZE and LOCAL_RANK, which a launcher has put into the environment.

    Raises:
        UserError: names the variable that is missing or wrong.
    """
    needed = ["RANK", "WORLD_SIZE"]
    if os.environ["WORLD_SIZE"] != "1":
        needed += ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]
    for name in needed:
        value = os.environ.get(name, "")
        if not value or (name != "MASTER_ADDR" and not value.isdecimal()):
            raise UserError(
                f"the environment has RANK and WORLD_SIZE, and {name} is {value or 'missing'!r}:"
                " start by torchrun, or unset them for processes that start themselves"
            )
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return rank, count, int(os.environ.get("LOCAL_RANK", 0))
