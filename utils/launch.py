"""Running a command: on one process or many, with one message and the right exit status."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from utils.errors import Interrupted, UserError

Worker = Callable[[Any, Any], None]  # (config, ranks)
GRACE = 60.0  # seconds for the others to save and end after one was stopped by a signal


def run_command(command: Callable[[], None]) -> int:
    """Run a command and say what a user needs to know.

    Returns:
        The exit status: 0; 2 after a user error, one `error:` line on stderr for each cause;
        130 after Ctrl-C and 143 after SIGTERM. Bugs keep their traceback.
    """
    try:
        command()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" or not is_shared(error):
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr, flush=True)
        return 2
    except Interrupted as stop:
        return stop.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT
    return 0


def is_shared(error: UserError) -> bool:
    """Whether rank 0 says the same."""
    from utils.distributed import SharedUserError

    return isinstance(error, SharedUserError)


def launch(worker: Worker, config: Any) -> None:
    """Run `worker(config, ranks)`: under torchrun as one of its processes, else on every GPU.

    Raises:
        UserError, Interrupted: what a process raised.
    """
    from utils import distributed

    if distributed.under_torchrun():
        ranks = distributed.join_torchrun(config.RUN.device)
        try:
            worker(config, ranks)
        finally:
            distributed.leave()
        return
    count = distributed.number_of_processes(config.RUN.nproc, config.RUN.device)
    if count == 1:
        worker(config, distributed.join(config.RUN.device, 0, 1, 0, ""))
        return
    with tempfile.TemporaryDirectory() as folder:
        run_processes(worker, config, count, f"file://{folder}/meeting")


def run_processes(worker: Worker, config: Any, count: int, meeting: str) -> None:
    """Start `count` processes, pass signals on, and end all when one fails."""
    context = multiprocessing.get_context("spawn")
    reports = context.SimpleQueue()
    processes = [
        context.Process(target=child, args=(worker, config, rank, count, meeting, reports))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    forwarded: list[int] = []
    previous = forward_signals(processes, forwarded)
    try:
        wait_for(processes, reports, forwarded)
    finally:
        for process in processes:
            process.kill()
            process.join()
        for number, handler in previous.items():
            signal.signal(number, handler)


def forward_signals(processes: list, forwarded: list[int]) -> dict[int, Any]:
    """Pass SIGINT, SIGTERM and SIGUSR1 on, noting each; returns the handlers before."""

    def forward(signum: int, _: Any) -> None:
        forwarded.append(signum)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signum)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    return {getattr(signal, name): signal.signal(getattr(signal, name), forward) for name in names}


def wait_for(processes: list, reports: Any, forwarded: list[int]) -> None:
    """Wait until all have ended; raise the first report of one that failed.

    Raises:
        UserError, Interrupted, RuntimeError: that report.
    """
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in connection.wait(list(running)):
            process = running.pop(sentinel)
            process.join()
            if process.exitcode:
                raise_report(process, running, reports, forwarded)


def raise_report(failed: Any, running: dict, reports: Any, forwarded: list[int]) -> None:
    """Raise what the failed process reported."""
    if reports.empty() and -failed.exitcode in forwarded:  # a signal that it had no handler for
        raise Interrupted(-failed.exitcode)
    if reports.empty():
        status = failed.exitcode
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        raise RuntimeError(f"process {failed.name} {how}; its peers were ended")
    kind, detail = reports.get()
    if kind == "user":
        raise UserError(detail)
    if kind == "interrupted":
        deadline = time.monotonic() + GRACE
        for process in running.values():
            process.join(max(0.0, deadline - time.monotonic()))
        raise Interrupted(detail)
    print(detail, file=sys.stderr, flush=True)
    raise SystemExit(1)


def child(worker: Worker, config: Any, rank: int, count: int, meeting: str, reports: Any) -> None:
    """One of the processes."""
    from utils import distributed

    follow_parent()
    share_cores(count)
    try:
        worker(config, distributed.join(config.RUN.device, rank, count, rank, meeting))
    except UserError as error:
        reports.put(("user", str(error)))
        os._exit(2)  # at once: peers may be waiting for this one
    except (Interrupted, KeyboardInterrupt) as stop:
        signum = stop.signum if isinstance(stop, Interrupted) else signal.SIGINT
        reports.put(("interrupted", int(signum)))
        os._exit(128 + signum)
    except BaseException:
        reports.put(("bug", traceback.format_exc()))
        os._exit(1)
    distributed.leave()


def follow_parent() -> None:
    """End this process as soon as the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def share_cores(count: int) -> None:
    """Give each process its share of the CPU's cores, unless OMP_NUM_THREADS says otherwise."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
