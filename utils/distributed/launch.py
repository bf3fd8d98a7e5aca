"""Running a command: on one process or many, with one message and the right exit status."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from utils.distributed.processes import Worker, end_readers, run_processes, say_error
from utils.distributed.signals import StoppedAtOnce, stopping_at_once
from utils.errors import Interrupted, SharedUserError, UserError
from utils.streams import lasting_streams


class OwnUserError(UserError):
    """A user error that this process alone has, among those of torchrun."""


@lasting_streams()
def run_command(command: Callable[[], int | None]) -> int:
    """Run a command and say what a user needs to know.

    Returns:
        The exit status: what the command returns, or 0; 2 after a user error, one `error:` line on
        stderr for each cause; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP; 1 where
        another process has failed. Bugs keep their traceback.
    """
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
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":
            say_error("another process has ended, or its machine cannot be reached")
        return 1


def speaks(error: UserError) -> bool:
    """Whether it is for this process of torchrun's to say it: one on all, or on each machine."""
    if isinstance(error, SharedUserError):
        return os.environ.get("RANK", "0") == "0"
    return isinstance(error, OwnUserError) or os.environ.get("LOCAL_RANK", "0") == "0"


def launch(worker: Worker, config: Any) -> None:
    """Run `worker(config, context)`: under torchrun as one of its processes, else on every GPU.

    Raises:
        UserError, Interrupted, StoppedAtOnce: what a process raised.
    """
    from utils.distributed import context as distributed

    if distributed.under_torchrun():
        run_under_torchrun(worker, config)
        return
    device = config.RUN.device
    count = distributed.number_of_processes(config.RUN.nproc, device)
    if count == 1:
        worker(config, distributed.init(device, 0, 1, 0, ""))
        return
    with tempfile.TemporaryDirectory() as folder:
        run_processes(worker, config, count, f"file://{folder}/meeting")


def run_under_torchrun(worker: Worker, config: Any) -> None:
    """Be one of the processes that torchrun (or another launcher) has started.

    Raises:
        UserError: the environment lacks something, --nproc says another number; or the worker's.
    """
    from utils.distributed import context as distributed

    distributed.check_launcher()
    count = int(os.environ["WORLD_SIZE"])
    if config.RUN.nproc not in (0, count):
        raise UserError(
            f"--nproc {config.RUN.nproc}: torchrun has started {count} processes; leave it out"
        )
    try:
        worker(config, distributed.init_from_environment(config.RUN.device))
    except SharedUserError:
        raise
    except UserError as error:
        raise OwnUserError(str(error)) from error
    distributed.destroy()  # not after an error: it would wait for peers that may be busy
