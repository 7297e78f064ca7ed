"""What is read of the processor, and what is set for it."""

import os
import platform
import subprocess
import sys

import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.system import cpu

X86 = "processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu sse2 {}\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "CPUINFO", path)
    return path


@pytest.fixture
def many_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


@pytest.mark.parametrize(
    ("text", "native"),
    [
        (X86.format("avx512f"), False),
        (X86.format("avx512f avx512_bf16"), True),
        (X86.format("amx_bf16 amx_tile"), True),
        ("Features\t: fp asimd bf16\n", True),
        ("Features\t: fp asimd\nmodel name: bf16\n", False),
        ("", False),
    ],
)
def test_native_bfloat16_is_read_from_the_flags(cpuinfo, text, native):
    cpuinfo.write_text(text)
    assert cpu.has_native_bfloat16() is native


def test_the_name_is_read_or_guessed(cpuinfo):
    assert cpu.processor_name() == (platform.processor() or platform.machine())
    cpuinfo.write_text(X86.format(""))
    assert cpu.processor_name() == "A Processor"


APPLE = {"hw.optional.arm.FEAT_BF16": "1\n", "machdep.cpu.brand_string": "Apple M2\n"}


@pytest.fixture
def mac(monkeypatch, cpuinfo):
    """A Mac whose ``sysctl`` says what this dictionary holds."""
    answers = {}

    def sysctl(words, **_):
        assert words[:2] == ["/usr/sbin/sysctl", "-n"]
        return subprocess.CompletedProcess(words, 0, stdout=answers.get(words[2], ""))

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", sysctl)
    return answers


def test_an_apple_processor_is_asked_by_sysctl(mac):
    mac.update(APPLE)
    assert cpu.has_native_bfloat16()
    assert cpu.processor_name() == "Apple M2"
    mac["hw.optional.arm.FEAT_BF16"] = "0\n"
    assert not cpu.has_native_bfloat16()
    mac.clear()  # an Intel one knows no such feature
    assert not cpu.has_native_bfloat16()


@pytest.mark.parametrize("native", [True, False])
def test_on_windows_pytorch_is_asked(native, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(th.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    assert cpu.has_native_bfloat16() is native
    monkeypatch.delattr(th.cpu, "_is_avx512_bf16_supported")
    assert not cpu.has_native_bfloat16()


def test_affinity_bounds_the_processors(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert cpu.available_processors(tmp_path) == 3


@pytest.mark.parametrize(
    ("limits", "processors"),
    [
        ({"a/b/cpu.max": "max 100000\n"}, 64),
        ({"a/b/cpu.max": "250000 100000\n"}, 2),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ({"a/b/cpu.max": "50000 100000\n"}, 1),
    ],
)
def test_a_control_group_of_version_2_bounds_the_processors(
    tmp_path, many_processors, limits, processors
):
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    for name, text in limits.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    assert cpu.available_processors(tmp_path) == processors


@pytest.mark.parametrize(("quota", "processors"), [("-1", 64), ("400000", 4)])
def test_a_control_group_of_version_1_bounds_the_processors(
    tmp_path, many_processors, quota, processors
):
    write(tmp_path / "proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/a\n")
    group = tmp_path / "sys/fs/cgroup/cpu,cpuacct/a"
    write(group / "cpu.cfs_quota_us", f"{quota}\n")
    write(group / "cpu.cfs_period_us", "100000\n")
    assert cpu.available_processors(tmp_path) == processors


def test_a_negative_number_of_threads_is_refused():
    with pytest.raises(InputError, match="--num_threads -1"):
        cpu.configure_cpu(-1)


@pytest.mark.parametrize(("variable", "threads"), [("5", 5), ("4,2", 3), ("", 3)])
def test_threads_are_those_of_the_environment_or_as_many_as_processors(
    variable, threads, monkeypatch
):
    chosen = []
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(cpu, "available_processors", lambda: 3)
    monkeypatch.setattr(cpu, "configured", None)
    monkeypatch.setattr(th, "set_num_threads", chosen.append)
    monkeypatch.setattr(th, "set_flush_denormal", lambda on: True)
    cpu.configure_cpu(tune_memory=False)
    assert chosen == [threads]


@pytest.mark.parametrize("threads", [64, 999])
def test_more_threads_than_processors_are_warned_of(threads, many_processors, monkeypatch):
    monkeypatch.setattr(cpu, "configured", cpu.Processor("some", threads, False, True, False))
    assert ("999 threads on 64 processors" in (cpu.thread_warning() or "")) == (threads == 999)


def test_peak_memory_is_in_bytes(monkeypatch):
    pytest.importorskip("resource")
    assert 10e6 < cpu.peak_memory() < 1e12
    monkeypatch.setitem(sys.modules, "resource", None)
    assert cpu.peak_memory() == 0
