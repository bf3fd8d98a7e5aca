"""A command as several processes of this machine: one fails, all end, and one message says why."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection
from typing import Any

from utils.config.settings import Config
from utils.distributed.signals import (
    SAVE_SIGNAL,
    STOP_SIGNALS,
    StoppedAtOnce,
    handling,
    holding_back,
    let_through,
    stopping_at_once,
)
from utils.errors import Interrupted, UserError
from utils.streams import lasting_streams
from utils.text import printable

Worker = Callable[[Config, Any], None]  # (config, context)
KILLED = -9  # exit status, as Python gives it, of a process that SIGKILL has ended
END_SECONDS = 5.0  # for a process to end by itself once its parent pipe is closed
SAVE_SECONDS = 60.0  # for the others to save and end after one was stopped by a signal


def run_processes(worker: Worker, config: Config, count: int, meeting: str) -> None:
    """Start `count` processes, pass signals on, and end all when one fails."""
    context = multiprocessing.get_context("spawn")
    with holding_back():
        reports = context.SimpleQueue()
    pipe_of_children, parent_pipe = context.Pipe(duplex=False)
    processes = [
        context.Process(
            target=child, args=(pipe_of_children, reports, worker, config, rank, count, meeting)
        )
        for rank in range(count)
    ]
    forwarded: list[int] = []

    def forward(signum: int, _: Any) -> None:
        forwarded.append(signum)
        for process in processes:
            if process.pid and process.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signum)

    with handling(dict.fromkeys((*STOP_SIGNALS, SAVE_SIGNAL), forward)):
        try:
            with holding_back():
                for process in processes:
                    process.start()
            wait_for(processes, reports, forwarded)
        finally:
            parent_pipe.close()
            deadline = time.monotonic() + END_SECONDS
            for process in filter(lambda process: process.pid, processes):
                process.join(max(0.0, deadline - time.monotonic()))
                process.kill()
                process.join()


def wait_for(processes: list, reports: Any, forwarded: list[int]) -> None:
    """Wait until all have ended; as soon as one fails, raise what went wrong.

    Raises:
        UserError, Interrupted, StoppedAtOnce: a process reported it.
        SystemExit: a process had a bug, which is printed, or was killed.
    """
    running = list(processes)
    while running:
        # Asked for now and then, too: a reading process that outlives a killed one keeps the
        # killed one's end of the sentinel.
        connection.wait([process.sentinel for process in running], timeout=0.5)
        ended = [process for process in running if process.exitcode is not None]
        running = [process for process in running if process not in ended]
        failed = {processes.index(p): p.exitcode for p in ended if p.exitcode}
        if failed:
            raise_cause(failed, running, reports, forwarded)


def raise_cause(failed: dict[int, int], running: list, reports: Any, forwarded: list[int]) -> None:
    """Raise what made processes fail: the first report, unless it tells of one that was killed.

    Args:
        failed: exit status by rank, negative after a signal; those seen at once.
        running: the others.
    """
    stops = [number for number in forwarded if signal.Signals(number).name in STOP_SIGNALS]
    if reports.empty() and stops:  # before they could answer
        raise StoppedAtOnce(stops[0])
    if reports.empty() or KILLED in failed.values():
        rank, status = min(failed.items(), key=lambda item: item[1])
        how = f"ended with status {status}"
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        hint = ", perhaps for lack of memory" if status == KILLED else ""
        say_error(f"process {rank} {how}{hint}; its peers were ended")
        raise SystemExit(1)
    kind, detail = reports.get()
    if kind == "user":
        raise UserError(detail)
    if kind == "bug":
        print(detail, end="", file=sys.stderr, flush=True)
        raise SystemExit(1)
    deadline = time.monotonic() + SAVE_SECONDS
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))
    kinds = {kind}
    while not reports.empty():
        kinds.add(reports.get()[0])
    if isinstance(detail, Interrupted) and "said" not in kinds:
        name = signal.Signals(detail.signum).name
        print(f"stopped by {name}; what was saved is intact. Resume with --resume auto", flush=True)
    raise detail


@lasting_streams()
def child(parent_pipe: Any, reports: Any, worker: Worker, config: Config, *place: Any) -> None:
    """One of the processes. After a failure it ends at once: peers may be waiting for it."""
    threading.Thread(target=end_with_parent, args=(parent_pipe,), daemon=True).start()
    # A spawned process would spawn its reading processes, too, each with an import of torch.
    multiprocessing.set_start_method(None, force=True)
    try:
        with stopping_at_once():
            let_through()
            rank, count, meeting = place
            share_cores(count)
            meet_and_work(worker, config, rank, count, rank, meeting)
        return
    except UserError as error:
        report: tuple[str, Any] | None = ("user", str(error))
        status = 2
    except (Interrupted, StoppedAtOnce) as stop:
        # Only the first process prints what it has to say.
        report, status = ("stopped" if place[0] else "said", stop), 128 + stop.signum
    except BaseException as error:
        report, status = report_of(error), 1
    if report is not None:
        reports.put(report)
    end_readers()
    sys.stdout.flush()
    os._exit(status)


def report_of(error: BaseException) -> tuple[str, str] | None:
    """What to report of a bug; nothing of a lost connection, for the lost process knows why."""
    from utils.distributed.context import lost_peer

    return None if lost_peer(error) else ("bug", traceback.format_exc())


def meet_and_work(
    worker: Worker, config: Config, rank: int, count: int, local_rank: int, meeting: str
) -> None:
    """Be one of `count` processes, or the only one.

    Args:
        meeting: see `context.init`.

    Raises:
        UserError: the worker's, or the device's memory was too small.
    """
    from utils.distributed import context as distributed

    context = distributed.init(config.RUN.device, rank, count, local_rank, meeting)
    try:
        worker(config, context)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(too_large(config, count, str(context.device))) from error
    distributed.destroy()  # not after an error: it would wait for peers that may be busy


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, had no memory left."""
    import torch

    said = re.search(r"out of memory|can't allocate memory", str(error), re.IGNORECASE)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or said is not None


def too_large(config: Config, count: int, device: str) -> str:
    """What was too large for a device's memory, and what makes it smaller."""
    if config.OPTIONS.evaluating:
        batch, setting, precision = config.EVAL.batch_size, "EVAL.batch_size", "EVAL.precision"
    else:
        batch = max(1, config.DATA.batch_size // count)
        setting, precision = "DATA.batch_size", "TRAIN.precision"
    return (
        f"out of memory on {device} with batches of {batch} images a device, DATA.crop_size"
        f" {config.DATA.crop_size} and {precision} {config.value(precision)}; lower {setting} or"
        f" the crop, or use {precision} bf16"
    )


def end_with_parent(parent_pipe: Any) -> None:
    """End this process when the parent closes its pipe, as it does however it ends."""
    connection.wait([parent_pipe])
    kill_children()
    os._exit(1)


def end_readers() -> None:
    """End the reading processes of this one, which would wait some seconds before they end."""
    if hasattr(signal, "SIGCHLD"):  # torch's handler raises an error for each of them
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    kill_children()


def kill_children() -> None:
    """End the processes that this one has started."""
    for process in multiprocessing.active_children():
        process.kill()


def share_cores(count: int) -> None:
    """Give each process its share of the CPU's cores, unless OMP_NUM_THREADS says otherwise."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))


def say_error(text: str) -> None:
    """One line on stderr for each of the text's."""
    for line in text.splitlines():
        print(f"error: {printable(line)}", file=sys.stderr, flush=True)
