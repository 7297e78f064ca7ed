"""Memory that is kept as the process is configured, and given back."""

import json
import os
import platform

import pytest
from in_process import run_program

from improved_diffusion.system import allocator

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


HUGE = """
import re
from pathlib import Path
from improved_diffusion.system import allocator
assert allocator.keep_freed_memory()
has_room = allocator._has_room(allocator.HEAP)
areas = re.split(r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(), flags=re.M)
asked = any("[heap]" in area and re.search("^VmFlags:.* hg", area, re.M) for area in areas)
print(asked == has_room)
"""


@pytest.mark.skipif(
    not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="has no huge pages"
)
def test_the_heap_asks_for_huge_pages(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert run_program(HUGE).strip() == "True"


UNTUNED = """
import resource
from improved_diffusion.system import allocator
allocator.give_back_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults()
    blocks = [b"x" * (4 << 20) for _ in range(3)]
    del blocks[1:]
    del blocks
print(faults() - before)
"""


def test_a_process_that_keeps_nothing_is_left_as_it_was(monkeypatch):
    """Its glibc learns which blocks to keep, unless one of its settings is changed."""
    if not allocator._has_room(allocator.HEAP):
        pytest.skip("has no room for huge pages")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    changed = UNTUNED.replace("allocator.give", "allocator._ask_for_huge_pages(); allocator.give")
    assert int(run_program(UNTUNED)) < int(run_program(changed))


LIMITED = """
import resource
from improved_diffusion.system import allocator
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
assert allocator.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults()
    blocks = [b"x" * (50 << 20) for _ in range(3)]
    del blocks
print(faults() - before)
"""


def test_memory_is_kept_where_there_is_no_room_for_huge_pages(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert int(run_program(LIMITED)) < 1000


@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_is_kept_until_it_is_given_back(keep, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    full, freed, given_back = json.loads(run_program(HOLDS.format(keep=keep)))
    assert given_back < 100 < full
    assert (freed > 100) == keep
