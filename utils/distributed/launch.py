"""Running a command, on one rank or many: one message, the right exit status, nothing left over.

Torch is imported only once ranks are started, so that a typo is answered at once.
"""

import io
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from utils.config.settings import Config
from utils.config.validators import MOST, whole
from utils.cpu_memory import keep_freed_memory
from utils.distributed.signals import (
    SIGNALS,
    STOP_SIGNALS,
    block_signals,
    handling,
    stopping_at_once,
    unblock_signals,
)
from utils.errors import Interrupted, SharedUserError, UserError
from utils.storage.files import replacing
from utils.text import printable

Worker = Callable[[Config, Any], None]  # (config, context)
KILLED = -9  # exit status, as Python gives it, of a process that SIGKILL has ended
SAVE_SECONDS = 60.0  # for all ranks to save and end, once one was stopped by a signal
END_SECONDS = 5.0  # for a rank to end by itself after another has failed
# What gloo and NCCL raise when a process that they talk to is gone.
LOST_PEER = "(?i)(closed|reset) by peer|broken pipe|remote process exited|communicator was aborted"


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command and say what a user needs to know.

    Returns:
        The exit status: what the command returns, or 0; 2 after a user error, one `error:` line on
        stderr for each cause; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP; 1 where
        another process has failed. Bugs keep their traceback.
    """
    protect_streams()
    first, first_here = (os.environ.get(n, "0") == "0" for n in ("RANK", "LOCAL_RANK"))
    with stopping_at_once():
        try:
            status = command() or 0
        except UserError as error:
            status = 2
            if first if isinstance(error, SharedUserError) else first_here:
                print_error(str(error))
        except Interrupted as stop:
            status = stop.exit_status
            if first and not stop.said:
                print(stop, file=sys.stderr, flush=True)
            kill_children()
        except Exception as error:
            status = 1
            kill_children()  # its traceback keeps the loaders, and their workers ignore SIGTERM
            if lost_peer(error):
                if first_here:
                    print_error("another process has ended, or its machine cannot be reached")
            elif in_process_group():
                traceback.print_exc()
            else:
                raise
    sys.stdout.flush()
    if status and in_process_group():
        os._exit(status)  # NCCL's destructors would wait for peers
    return status


def launch(worker: Worker, config: Config) -> None:
    """Run `worker(config, context)`: under torchrun as one of its ranks, else on every GPU."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        run_under_torchrun(worker, config)
        return
    from utils.distributed.context import number_of_processes

    count = number_of_processes(config.RUN.nproc, config.RUN.device)
    if count == 1:
        run_rank(worker, config, 0, 1, 0)
    else:
        run_ranks(worker, config, count)


def run_under_torchrun(worker: Worker, config: Config) -> None:
    """Be one of the ranks that torchrun (or another launcher) has started."""
    rank, count, local_rank = map(environment_number, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    environment_number("MASTER_PORT", 65535)
    if rank >= count:
        raise UserError(
            f"RANK {rank} is none of WORLD_SIZE {count}; start by torchrun, or unset both"
        )
    needed = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if count > 1 else ()
    if missing := [name for name in needed if not os.environ.get(name)]:
        raise UserError(
            f"the environment has RANK and WORLD_SIZE, and no {', '.join(missing)}: start by"
            " torchrun, or unset them for processes that start themselves"
        )
    if config.RUN.nproc not in (0, count):
        raise UserError(
            f"--nproc {config.RUN.nproc}: torchrun has started {count} processes; leave it out"
        )
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1":
        # Ranks of a restart would find the addresses of those before it (pytorch issue 135712).
        raise UserError(
            "torchrun --max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment,"
            " or its restarts never meet; export that on every machine"
        )
    try:
        run_rank(worker, config, rank, count, local_rank)
    except UserError as error:
        if local_rank and not isinstance(error, SharedUserError):
            print_error(str(error))  # this rank alone has it; `run_command` prints local rank 0's
        raise


def environment_number(name: str, most: int = MOST) -> int:
    """What a launcher says, at least 0; 0 where it does not say it."""
    try:
        return whole(0, most)(os.environ.get(name) or 0)
    except ValueError as error:
        fix = "start by torchrun, or unset RANK and WORLD_SIZE"
        raise UserError(f"{name} of the environment: {error}; {fix}") from error


def run_ranks(worker: Worker, config: Config, count: int) -> None:
    """Start `count` ranks on this machine, forward signals, and end all when one fails."""
    from torch.multiprocessing import start_processes

    processes: Sequence[BaseProcess] = ()
    stops: list[int] = []

    def forward(signum: int, _: Any) -> None:
        stops.extend({signum}.intersection(STOP_SIGNALS))
        for process in processes:
            if process.is_alive() and process.pid:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signum)

    pipe_of_ranks, pipe = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder, handling(SIGNALS, forward):
        try:
            with block_signals():
                arguments = (worker, config, count, folder, pipe_of_ranks)
                processes = start_processes(rank_main, arguments, count, join=False).processes
            failed = first_failed(processes)
            if failed and all(status - 128 in STOP_SIGNALS for status in failed.values()):
                join(processes, SAVE_SECONDS)
        finally:
            pipe.close()  # ends the others
            join(processes, END_SECONDS)
            for process in processes:
                process.kill()
                process.join()
        paths = {rank: Path(folder, str(rank)) for rank, p in enumerate(processes) if p.exitcode}
        reports = {rank: pickle.loads(p.read_bytes()) for rank, p in paths.items() if p.exists()}
    if failed:
        raise_cause(failed, reports, stops)


def first_failed(processes: Sequence[BaseProcess]) -> dict[int, int]:
    """Wait until some ranks have failed (exit status by rank, < 0: signal), or all have ended."""
    while True:
        running = [process.sentinel for process in processes if process.exitcode is None]
        failed = {rank: p.exitcode for rank, p in enumerate(processes) if p.exitcode}
        if failed or not running:
            return failed
        # Loader workers that outlive a killed rank keep its sentinel open.
        connection.wait(running, timeout=0.5)


def join(processes: Sequence[BaseProcess], seconds: float) -> None:
    """Wait for the end of all processes, so many seconds at most."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


def raise_cause(failed: dict[int, int], reports: dict[int, Any], stops: list[int]) -> None:
    """Raise what made ranks fail: a report of theirs, a stop signal, or exit status 1."""
    if stops and not reports:
        raise Interrupted(stops[0])
    if not reports or KILLED in failed.values():
        rank, status = min(failed.items(), key=lambda item: item[1])
        killed = status < 0 and f"was killed by {signal.Signals(-status).name}"
        how = killed or f"ended with status {status}"
        hint = ", perhaps for lack of memory" if status == KILLED else ""
        print_error(f"process {rank} {how}{hint}; its peers were ended")
        raise SystemExit(1)
    bugs = [report for report in reports.values() if isinstance(report, str)]
    errors = [report for report in reports.values() if isinstance(report, UserError)]
    if bugs:
        print(bugs[0], end="", file=sys.stderr, flush=True)
        raise SystemExit(1)
    if errors:
        raise errors[0]
    # Rank 0 alone prints; without its report the parent has to.
    raise reports.get(0, Interrupted(next(iter(reports.values())).signum))


def rank_main(
    rank: int, worker: Worker, config: Config, count: int, folder: str, pipe_of_ranks: Any
) -> None:
    """The process of a rank. After a failure it ends at once: peers may be waiting for it."""
    import torch

    threading.Thread(target=end_with_parent, args=(pipe_of_ranks,), daemon=True).start()
    # A spawned process would spawn its loader workers, too, each with an import of torch.
    multiprocessing.set_start_method(None, force=True)
    protect_streams()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    with stopping_at_once():
        try:
            unblock_signals()
            run_rank(worker, config, rank, count, rank, f"file://{folder}/rendezvous")
            return
        except BaseException as error:
            status = error.exit_status if isinstance(error, Interrupted) else 1
            said = isinstance(error, (UserError, Interrupted))
            report = error if said else traceback.format_exc()
            if not lost_peer(error):  # the lost one reports itself
                with replacing(Path(folder, str(rank))) as file:
                    pickle.dump(report, file)
    kill_children()
    sys.stdout.flush()
    os._exit(status)


def run_rank(
    worker: Worker, config: Config, rank: int, count: int, local_rank: int, init_method: str = ""
) -> None:
    """Be one of `count` ranks, or the only one; `init_method` as in `context.init`."""
    from utils.distributed import context as distributed

    keep_freed_memory()
    context = distributed.init(config.RUN.device, rank, count, local_rank, init_method)
    try:
        worker(config, context)
    except (RuntimeError, MemoryError) as error:
        said = re.search("out of memory|can't allocate memory", str(error), re.IGNORECASE)
        if not (said or isinstance(error, MemoryError)):
            raise
        batch, part = ("EVAL", "EVAL") if config.OPTIONS.evaluating else ("DATA", "TRAIN")
        raise UserError(
            f"out of memory on {context.device}; lower {batch}.batch_size or the crop, or use"
            f" {part}.precision bf16"
        ) from error
    distributed.destroy()  # not after an error: it would wait for peers that may be busy


def lost_peer(error: BaseException) -> bool:
    """Whether talking to the other ranks has failed since one of them is gone."""
    return isinstance(error, RuntimeError) and re.search(LOST_PEER, str(error)) is not None


def in_process_group() -> bool:
    """Whether this process has met others."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def end_with_parent(pipe_of_ranks: Any) -> None:
    """End this process when the parent closes its end of the pipe, as it does however it ends."""
    connection.wait([pipe_of_ranks])
    kill_children()
    os._exit(1)


def kill_children() -> None:
    """End this process's loader workers, which would wait some seconds before they end."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for each of them
    for process in multiprocessing.active_children():
        process.kill()


def print_error(text: str) -> None:
    """One line on stderr for each of the text's."""
    for line in text.splitlines():
        print(f"error: {printable(line)}", file=sys.stderr, flush=True)


class LastingFile(io.FileIO):
    """A descriptor that swallows what cannot be written: the work matters more."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def protect_streams() -> None:
    """Let no printing end a command: streams may be closed, full, without a reader, or ASCII."""
    # The next files would otherwise take descriptors that processes print to.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # nobody has redirected it
            encoding = stream.encoding if stream else "utf-8"
            buffer = io.BufferedWriter(LastingFile(number, "w", closefd=False))
            lasting = io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, lasting)
