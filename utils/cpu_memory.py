"""Freed memory stays with the process, ready for the next training step, on large pages."""

import ctypes
import mmap
import os

# Numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have malloc reuse large blocks instead of handing them back to the system.

    Every step of training allocates the same activations, tens of megabytes each. By default glibc
    maps each such block again and unmaps it when it is freed, and the system then clears every page
    on its first touch: up to a third of a step on the CPU. To be called before any work. GPUs'
    memory is PyTorch's own matter.
    """
    try:
        libc = ctypes.CDLL(None)
        kept = libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1)  # -1: never
        if kept:
            ask_for_large_pages(libc)
        return bool(kept)
    except (OSError, AttributeError, TypeError):  # another libc, or none to ask
        return False


def ask_for_large_pages(libc: ctypes.CDLL) -> None:
    """Have the heap that is still to grow lie on large pages, where the system has them to give.

    The heap is grown at once by half of the machine's memory, which costs addresses and no memory
    before it is used, and marked; a system that refuses either leaves everything as it was.
    """
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.malloc(size)
    if start is None:
        return
    libc.free(start)  # and kept, see above
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
    libc.madvise(first, last - first, mmap.MADV_HUGEPAGE)
