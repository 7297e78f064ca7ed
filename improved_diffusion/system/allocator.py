"""Memory that one step frees and the next one wants again.

glibc gives large freed blocks back to the kernel, which clears every page of every activation anew
in every step: 20,000 page faults in a training step of the CIFAR-10 model.
"""

import ctypes
import platform

# Options of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCKS = 2**30, 2**25  # the second is the most that glibc before 2.35 takes
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc keep large blocks for the next step, rather than give them back.

    :return: whether it does; other C libraries cannot be told to.
    """
    if not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST_BLOCKS)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))


def give_back_memory() -> None:
    """Return freed memory to the system, once: before something else needs room for a while."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
