"""Freed memory stays with the process."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

pytestmark = pytest.mark.slow

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

print(new_pages(), keep_freed_memory(), new_pages())
block = torch.ones(2**26)
if os.path.exists("/proc/self/smaps_rollup"):
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))
"""
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What a process prints: pages without it, whether it had an effect, pages with it; KiB."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.split()


def test_large_blocks_are_reused_instead_of_mapped_anew(printed: list[str]) -> None:
    before, answer, kept = printed[:3]
    if answer == "False":
        pytest.skip("not glibc")
    assert int(kept) < 100
    assert int(before) > 1000  # what it is there for; 10 * 16384 pages of 4 KiB


@pytest.mark.skipif(
    not THP.exists() or "[never]" in THP.read_text(), reason="the system has no large pages"
)
def test_large_blocks_lie_on_large_pages(printed: list[str]) -> None:
    assert int(printed[3]) > 2**17  # at least half of the 256 MiB
