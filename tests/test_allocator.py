"""Scripts that start anew with a faster allocator, and memory that is kept and given back."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from improved_diffusion import allocator

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is replaced"
)
AVAILABLE = [a for a in allocator.FASTER if allocator._find(a.file)]
needs_one = pytest.mark.skipif(not AVAILABLE, reason="needs jemalloc, or mimalloc by .[fast]")

SAYS_ALL = """
import json, sys
from improved_diffusion import allocator, cli
print(json.dumps({
    "allocator": allocator.name_of_current(),
    "argv": sys.argv[1:],
    "optimize": sys.flags.optimize,
    "read": sys.stdin.read(),
}))
sys.exit(7)
"""


def say_all(folder, *words, options=(), **environment):
    """What a script in ``folder`` says when run with those words and nothing preloaded."""
    folder.mkdir(exist_ok=True)
    (folder / "say.py").write_text(SAYS_ALL)
    return run([*options, str(folder / "say.py"), *words], **environment)


def run(words, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "MALLOC_CONF")}
    done = subprocess.run(
        [sys.executable, *words],
        input="some input",
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7, done.stderr
    return json.loads(done.stdout), done.stderr


@needs_one
def test_a_script_starts_anew_with_the_first_one_there_is(tmp_path):
    words = ["--flag", "two words", "", "ö"]
    said, _ = say_all(tmp_path / "scripts", *words, options=["-u", "-O"])
    assert said == {
        "allocator": AVAILABLE[0].name,
        "argv": words,
        "optimize": 1,
        "read": "some input",
    }


def test_from_within_its_folder_too(tmp_path, monkeypatch):
    expected, _ = say_all(tmp_path / "scripts")
    monkeypatch.chdir(tmp_path / "scripts")
    said, _ = run(["say.py"])
    assert said["allocator"] == expected["allocator"]


@pytest.mark.parametrize("preload", ["", "/no/library.so"])
def test_what_the_environment_preloads_is_left_alone(preload, tmp_path):
    said, _ = say_all(tmp_path / "scripts", LD_PRELOAD=preload)
    assert said["allocator"] == "glibc"


def test_other_programs_are_left_alone(tmp_path):
    said, _ = say_all(tmp_path / "elsewhere")
    assert said["allocator"] == "glibc"
    said, _ = run(["-c", SAYS_ALL])
    assert said["allocator"] == "glibc"
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "say.py").write_text(SAYS_ALL)
    said, _ = run(["-m", "scripts.say"], PYTHONPATH=str(tmp_path))
    assert said["allocator"] == "glibc"


def test_a_broken_library_does_not_keep_a_script_from_running(tmp_path):
    header = Path(sys.executable).read_bytes()[:20]
    (tmp_path / "libbroken.so").write_bytes(header)
    (tmp_path / "scripts").mkdir()
    find = f"allocator._find = lambda _: {str(tmp_path / 'libbroken.so')!r}\n"
    program = "from improved_diffusion import allocator\n" + find + SAYS_ALL
    (tmp_path / "scripts" / "say.py").write_text(program)
    said, complaint = run([str(tmp_path / "scripts" / "say.py")])
    assert said["allocator"] == "glibc"
    assert "libbroken.so" in complaint


def test_a_library_for_another_processor_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "lib").mkdir()
    library = tmp_path / "lib" / "libsome.so"
    header = Path(sys.executable).read_bytes()[:20]
    library.write_bytes(header)
    assert allocator._find("libsome.so") == str(library)
    library.write_bytes(header[:18] + b"\xff\xff")
    assert allocator._find("libsome.so") is None
    library.write_bytes(b"")
    assert allocator._find("libsome.so") is None


HOLDS = """
import json, sys
from pathlib import Path
from improved_diffusion import allocator

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

allocator.keep_freed_memory()
sizes = [resident()]
block = b"x" * (200 << 20)
sizes.append(resident())
del block
sizes.append(resident())
allocator.give_back_memory()
sizes.append(resident())
print(json.dumps([allocator.name_of_current(), *((size - sizes[0]) / 2**20 for size in sizes)]))
sys.exit(7)
"""


@pytest.mark.parametrize("name", ["glibc", *(a.name for a in AVAILABLE)])
def test_freed_memory_is_kept_until_it_is_given_back(name):
    environment = {"LD_PRELOAD": ""}
    for one in AVAILABLE:
        if one.name == name:
            environment = {"LD_PRELOAD": allocator._find(one.file), **one.settings}
    (said, start, full, freed, given_back), _ = run(["-c", HOLDS], **environment)
    assert said == name
    assert start < 100 < full
    assert freed > 100 > given_back
