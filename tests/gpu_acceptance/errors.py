"""8. What a user does wrong with devices: one line each, exit status 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch

from tests.commands import settings
from tests.gpu_acceptance.checks import Check, contains, equal
from tests.gpu_acceptance.setting import Setting
from tests.processes import Done, free_port

HUGE = 100_000_000  # images in a batch
SAME_GPU = "have the same GPU; start no more than one process a GPU"
NO_OWN_GPU = "has no GPU of its own"


def checks(setting: Setting) -> Iterator[Check]:
    """Out of memory, GPUs that are not there, processes that share one."""
    cases = [("cuda:99", ["--device", "cuda:99"], "--device cuda:99: there is none here")]
    if setting.cuda:
        cases += [
            ("more processes than GPUs", ["--nproc", "99"], "--nproc 99: only "),
            ("a huge batch", ["--set", f"DATA.batch_size={HUGE}"], "out of memory on cuda:0 with"),
        ]
    else:
        cases += [("a GPU where there is none", ["--device", "cuda"], "--device cuda: there is")]
    for name, more, words in cases:
        yield from one_line(name, setting.run("main_free.py", *setting.training(*more)), words)
    if setting.cuda:
        gpus = torch.cuda.device_count()
        ranks, words = ((0, 99), NO_OWN_GPU) if gpus > 1 else ((0, 1), SAME_GPU)
        yield from one_line("LOCAL_RANK past the GPUs", together(setting, "cuda", ranks), words)
        yield from one_line("cuda:0 for two", together(setting, "cuda:0", (0, 1)), SAME_GPU)


def one_line(name: str, done: Done, words: str) -> Iterator[Check]:
    """The end of a command, and what it said."""
    lines = done.err.splitlines()
    yield equal(f"{name}: exit status, lines of error", (done.status, len(lines)), (2, 1))
    yield contains(f"{name}: what it says", done.err, words)


def together(setting: Setting, device: str, local_ranks: tuple[int, ...]) -> Done:
    """Processes as torchrun starts them; how the first one that says something has ended."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [setting.data, "--device", device, *settings()]
    with ExitStack() as stack:
        runnings = [
            stack.enter_context(
                setting.start(
                    "main_free.py",
                    *words,
                    cwd=setting.folder,
                    RANK=str(rank),
                    LOCAL_RANK=str(local_rank),
                    WORLD_SIZE=str(len(local_ranks)),
                    **place,
                )
            )
            for rank, local_rank in enumerate(local_ranks)
        ]
        if device == "cuda" and torch.cuda.device_count() > 1:
            return runnings[-1].end()  # the other one would wait for it
        first, *_ = [running.end() for running in runnings]
        return first
