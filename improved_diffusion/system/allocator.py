"""Memory that one step frees and the next one wants again.

glibc gives large freed blocks back to the kernel, which clears every page of every activation anew
in every step: 20,000 page faults in a training step of the CIFAR-10 model. And pages of 4 kB are so
many that looking them up takes 2 to 5 % of a step.
"""

import ctypes
import mmap
import platform
import sys

# Options of glibc's mallopt (malloc.h), and of Linux's madvise.
M_MXFAST, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = 1, -1, -3, -4
MADV_HUGEPAGE = 14
HUGE_PAGE = 2**21
LARGEST_BLOCKS = 2**30, 2**25  # the second is the most that glibc before 2.35 takes
LARGEST_INT = 2**31 - 1
MOST_MAPPED = 65536  # glibc's own M_MMAP_MAX
HEAP = 2**30
_keeps = False  # whether this process was told to keep what is freed


def keep_freed_memory() -> bool:
    """Have glibc keep large blocks for the next step, in huge pages, and not give them back.

    :return: whether it does; other C libraries cannot be told to.
    """
    if not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST_BLOCKS)
    if not (kept and mallopt(M_TRIM_THRESHOLD, LARGEST_INT)):
        return False
    global _keeps
    _keeps = True
    mallopt(M_MXFAST, 0)  # else each large block first joins all small ones that are free
    _ask_for_huge_pages()
    return True


def give_back_memory() -> None:
    """Return freed memory to the system, once: before something else needs room for a while."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)
    if _keeps:
        _ask_for_huge_pages()  # what comes after the heap's end is as it was at first


def _ask_for_huge_pages() -> None:
    """Have Linux back the next gigabyte of the heap by pages of 2 MB, once they are used."""
    if not _has_room(HEAP):
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    libc.mallopt(M_MMAP_MAX, 0)  # from the heap
    room = libc.malloc(HEAP)  # addresses alone
    libc.mallopt(M_MMAP_MAX, MOST_MAPPED)
    if room and room < libc.sbrk(0):  # of the heap, and not of another allocator
        first = -(-room // HUGE_PAGE) * HUGE_PAGE
        last = (room + HEAP) // HUGE_PAGE * HUGE_PAGE
        libc.madvise(first, last - first, MADV_HUGEPAGE)  # where it cannot, nothing is lost
    libc.free(room)


def _has_room(size: int) -> bool:
    """Whether the process may have so many more bytes of addresses.

    glibc that asks for them in vain goes on in another place, which does not keep what is freed.
    """
    if sys.platform != "linux":
        return False
    try:
        mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
