"""Memory that is kept as the process is configured, and given back."""

import json
import platform

import pytest
from in_process import run_program

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told to keep memory"
)

HOLDS = """
import json
import os
from pathlib import Path
from improved_diffusion.system import allocator, cpu

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

processor = cpu.configure_cpu(3, tune_memory={keep})
assert (processor.threads, processor.freed_memory_kept) == (3, {keep})
sizes = [resident()]
block = b"x" * (200 << 20)
sizes.append(resident())
del block
sizes.append(resident())
allocator.give_back_memory()
sizes.append(resident())
print(json.dumps([(size - sizes[0]) / 2**20 for size in sizes[1:]]))
"""


@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_is_kept_until_it_is_given_back(keep, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    full, freed, given_back = json.loads(run_program(HOLDS.format(keep=keep)))
    assert given_back < 100 < full
    assert (freed > 100) == keep
