"""Freed memory stays with the process."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

pytestmark = pytest.mark.slow

# New pages that the system hands out while a large block is allocated, filled and freed again.
PROGRAM = """
import resource, torch
from utils.cpu_memory import keep_freed_memory
print(keep_freed_memory() if {keep} else "")
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16, 2**20)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages)
"""
LARGE = """
import torch
from utils.cpu_memory import keep_freed_memory
keep_freed_memory()
block = torch.ones(2**26)
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))
"""
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def printed(program: str) -> list[str]:
    """Lines that a Python program prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()


def new_pages(keep: bool) -> tuple[str, int]:
    """What the function returned, and the pages of ten blocks of 64 MiB after a warm-up."""
    pytest.importorskip("resource")
    answer, pages = printed(PROGRAM.format(keep=keep))
    return answer, int(pages)


def test_large_blocks_are_reused_instead_of_mapped_anew():
    answer, kept = new_pages(True)
    if answer == "False":
        pytest.skip("not glibc")
    assert kept < 100
    assert new_pages(False)[1] > 1000  # what it is there for; 10 * 16384 pages of 4 KiB


@pytest.mark.skipif(
    not THP.exists() or "[never]" in THP.read_text(), reason="the system has no large pages"
)
def test_large_blocks_lie_on_large_pages():
    (kilobytes,) = printed(LARGE)
    assert int(kilobytes) > 2**17  # at least half of the 256 MiB
