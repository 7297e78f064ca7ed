"""Where a process gets its memory from: from a fast allocator, which keeps what is freed.

A training step makes thousands of requests, large and small. glibc gives each large block
back to the kernel, which clears every page of every activation anew in every step; told to keep
them, it still takes 5 % of the step to look for blocks. jemalloc and mimalloc take less.
"""

import contextlib
import ctypes
import os
import platform
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Options of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
GIB = 2**30
LARGEST_INT = 2**31 - 1
PRELOAD = "LD_PRELOAD"


@dataclass(frozen=True)
class Allocator:
    """A shared library that takes the place of the C library's malloc."""

    name: str
    file: str
    symbol: str  # by which a process tells that it has it
    settings: dict[str, str]  # of the environment, to keep freed memory
    give_back: Callable[[ctypes.CDLL], object]


FASTER = (
    Allocator(
        "jemalloc",
        "libjemalloc.so.2",
        "mallctl",
        # Freed memory is kept, the largest blocks in the same arena: apart they take 40 MB more.
        {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0"},
        lambda lib: lib.mallctl(b"arena.4096.purge", None, None, None, ctypes.c_size_t(0)),  # all
    ),
    Allocator(
        "mimalloc",
        "libmimalloc.so.3",
        "mi_collect",
        # What is not in use again within ten seconds is given back, and pages stay small: with
        # huge ones it takes 20 MB more.
        {"MIMALLOC_PURGE_DELAY": "10000", "MIMALLOC_ALLOW_THP": "0"},
        lambda lib: lib.mi_collect(True),
    ),
)


def restart_with_faster_one() -> None:
    """Start the script that this process runs anew, with a faster allocator, if there is one.

    To be called before anything slow is imported. It leaves alone all but this project's scripts,
    what has ``LD_PRELOAD`` in its environment, be it empty, and other C libraries.
    """
    if PRELOAD in os.environ or not _runs_a_script() or not _has_glibc():
        return
    for allocator in FASTER:
        if library := _find(allocator.file):
            with contextlib.suppress(OSError):
                environment = {**allocator.settings, **os.environ, PRELOAD: library}
                os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _runs_a_script() -> bool:
    """Whether the command line is Python, options without values, a script and its arguments."""
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
    script = Path(sys.argv[0]).resolve()
    return (
        sys.orig_argv[1 + len(before) :] == sys.argv
        and all(word.startswith("-") and not {"m", "c"} & set(word) for word in before)
        and script.is_file()
        and script.parent.name == "scripts"
        and (script.parent.parent / "improved_diffusion" / "allocator.py").is_file()
    )


def _find(file: str) -> str | None:
    """Path of a library for this processor: of this Python's environment, or of the system."""
    folders = [
        os.path.join(sysconfig.get_path("purelib"), "cmeel.prefix", "lib"),  # pip's cmeel-mimalloc
        os.path.join(sys.prefix, "lib"),
        "/usr/local/lib",
        f"/usr/lib/{platform.machine()}-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ]
    paths = (os.path.join(folder, file) for folder in folders)
    ours = _machine_of(sys.executable)
    for path in paths:
        can_be_preloaded = not {" ", ":"} & set(path)  # LD_PRELOAD is a list, split there
        if can_be_preloaded and _machine_of(path) == ours:
            return path
    return None


def _machine_of(path: str) -> bytes | None:
    """Word length and processor that a program or library is for, as its ELF header says."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        header = file.read(20)
        return header[4:6] + header[18:20]
    return None


def name_of_current() -> str:
    """The allocator that this process has: jemalloc, mimalloc, or the C library's."""
    if faster := _current():
        return faster.name
    return platform.libc_ver()[0] or "the system's allocator"


def keep_freed_memory() -> bool:
    """Have the allocator keep large blocks for the next step, rather than give them back.

    :return: whether it is one that can be told to, and took the settings.
    """
    if faster := _current():
        return faster.settings.items() <= os.environ.items()  # it reads them at its start only
    if not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, GIB) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))


def give_back_memory() -> None:
    """Return freed memory to the system, once: before something else needs room for a while."""
    if faster := _current():
        faster.give_back(ctypes.CDLL(None))
    elif _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _current() -> Allocator | None:
    process = ctypes.CDLL(None) if _has_glibc() else None
    return next((a for a in FASTER if hasattr(process, a.symbol)), None)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
