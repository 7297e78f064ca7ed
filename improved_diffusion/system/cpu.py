"""Getting the most out of the processor: threads, memory allocation, denormals, bfloat16."""

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from . import allocator

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Processor:
    """What a process computes with, as :func:`configure_cpu` set it."""

    name: str
    threads: int
    native_bfloat16: bool
    denormals_flushed: bool
    freed_memory_kept: bool

    def __str__(self) -> str:
        features = [
            f"{self.threads} threads",
            "native bfloat16" if self.native_bfloat16 else "no native bfloat16",
            "denormals flushed" if self.denormals_flushed else "denormals kept",
            "freed memory kept" if self.freed_memory_kept else "freed memory given back",
        ]
        return f"{self.name}, {', '.join(features)}"


configured: Processor | None = None  # by the last call of configure_cpu in this process


def configure_cpu(num_threads: int = 0, tune_memory: bool = True) -> Processor:
    """Set this process up to compute on its processors; call it before the first tensor.

    :param num_threads: threads to compute with; 0 for ``$OMP_NUM_THREADS``, else one a processor.
    :param tune_memory: have the :mod:`.allocator` keep freed memory.
    :raises InputError: for a negative number of threads.
    """
    if num_threads < 0:
        raise InputError(f"--num_threads {num_threads} is negative; give 0 for one a processor")
    kept = tune_memory and allocator.keep_freed_memory()
    import numpy as np
    import torch as th  # only now: what it allocates is to find the allocator tuned

    for kind in (np.float32, np.float64):
        np.finfo(kind)  # NumPy before 2.4 warns if it measures these with denormals flushed
    wanted = num_threads or _threads_of_environment() or available_processors()
    th.set_num_threads(wanted)
    global configured
    configured = Processor(
        name=processor_name(),
        threads=th.get_num_threads(),
        native_bfloat16=has_native_bfloat16(),
        denormals_flushed=th.set_flush_denormal(True),
        freed_memory_kept=kept,
    )
    return configured


def _threads_of_environment() -> int:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() else 0  # it may be a list, for nested parallelism


def available_processors(root: Path = Path("/")) -> int:
    """Processors that this process may use: by affinity, and by the quota of its control group.

    :param root: where ``proc`` and ``sys`` are.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min([count, *map(int, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Processors that the control group of this process, and those around it, allow."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        for group in (Path(path), *Path(path).parents):
            with contextlib.suppress(OSError, ValueError):
                yield _quota(mount / group.relative_to("/"))


def _quota(group: Path) -> float:
    """Processors that one control group allows, of version 2 or 1.

    :raises OSError: if the group has no such file.
    :raises ValueError: if it sets no limit.
    """
    if (group / "cpu.max").exists():
        quota, period = (group / "cpu.max").read_text().split()
    else:
        quota = (group / "cpu.cfs_quota_us").read_text().strip()
        period = (group / "cpu.cfs_period_us").read_text()
    if quota in ("max", "-1"):
        raise ValueError("no limit")
    return int(quota) / int(period)


def has_native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX512-BF16, AMX, or Arm's BF16)."""
    if platform.system() == "Darwin":
        return _sysctl("hw.optional.arm.FEAT_BF16") == "1"
    if platform.system() == "Windows":
        import torch as th

        # What a PyTorch does not know is taken for missing.
        return bool(getattr(th.cpu, "_is_avx512_bf16_supported", lambda: False)())
    return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def _cpu_flags() -> set[str]:
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return set(value.split())
    return set()


def processor_name() -> str:
    """The processor's name as the system gives it."""
    if platform.system() == "Darwin" and (name := _sysctl("machdep.cpu.brand_string")):
        return name
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    with contextlib.suppress(OSError):
        return CPUINFO.read_text(encoding="utf-8").splitlines()
    return []


def _sysctl(name: str) -> str:
    """What macOS says of itself under that name; "" if nothing."""
    with contextlib.suppress(OSError):
        words = ["/usr/sbin/sysctl", "-n", name]
        return subprocess.run(words, capture_output=True, text=True).stdout.strip()
    return ""


def peak_memory() -> int:
    """The most memory that this process ever held, in bytes; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def thread_warning() -> str | None:
    """One line where there are more threads than processors to run them, or None."""
    if configured is None or configured.threads <= (there := available_processors()):
        return None
    return (
        f"{configured.threads} threads on {there} processors wait for each other, which can take "
        f"100 times as long: leave --num_threads (and OMP_NUM_THREADS) out, or give {there}"
    )


def precision_advice(precision: str) -> str | None:
    """One line for whoever chose ``precision`` for this processor, where there is one to say."""
    if precision == "fp32" and has_native_bfloat16():
        return "This processor has native bfloat16: --precision bf16 is about 1.5 times as fast"
    return None
