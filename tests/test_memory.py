"""Freed memory stays with the process."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

PROGRAM = """
import os, resource, torch
from utils.cpu_memory import keep_freed_memory

def new_pages():
    # That the system hands out while ten blocks of 64 MiB are allocated, filled and freed again.
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(16, 2**20)
        pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return pages

print(new_pages(), int(keep_freed_memory()), new_pages())
block = torch.ones(2**26)
if os.path.exists("/proc/self/smaps_rollup"):
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))
"""
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.slow
def test_large_blocks_are_reused_and_lie_on_large_pages() -> None:
    pytest.importorskip("resource")
    words = [sys.executable, "-c", PROGRAM]
    printed = subprocess.check_output(words, env=environment(), cwd=ROOT, text=True, timeout=60)
    before, has_effect, kept, *huge = map(int, printed.split())
    if not has_effect:
        pytest.skip("not glibc")
    assert kept < 100
    assert before > 1000  # what it is there for; 10 * 16384 pages of 4 KiB
    if THP.exists() and "[never]" not in THP.read_text():
        assert huge[0] > 2**17  # KiB: at least half of the 256 MiB
