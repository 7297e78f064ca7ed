"""Scripts that start anew with a faster allocator, and memory that is kept and given back."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from improved_diffusion.system import allocator

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


@pytest.fixture
def scripts(tmp_path):
    """A folder of scripts that lies as the project's does, with one that says all."""
    (tmp_path / "improved_diffusion").mkdir()
    (tmp_path / "improved_diffusion" / "allocator.py").touch()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "say.py").write_text(SAYS_ALL)
    return tmp_path / "scripts"


def run(words, given="some input", **environment):
    """What a program says when run with those words and nothing preloaded; what it complains of."""
    kept = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "MALLOC_CONF")}
    done = subprocess.run(
        [sys.executable, *words],
        input=given,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7, done.stderr
    return json.loads(done.stdout), done.stderr


@needs_one
def test_a_script_starts_anew_with_the_first_one_there_is(scripts):
    words = ["--flag", "two words", "", "ö"]
    said, _ = run(["-u", "-O", str(scripts / "say.py"), *words])
    assert said == {
        "allocator": AVAILABLE[0].name,
        "argv": words,
        "optimize": 1,
        "read": "some input",
    }


@needs_one
def test_from_within_its_folder_too(scripts, monkeypatch):
    monkeypatch.chdir(scripts)
    said, _ = run(["say.py"])
    assert said["allocator"] == AVAILABLE[0].name


@needs_one
@pytest.mark.parametrize("preload", ["", "/no/library.so"])
def test_what_the_environment_preloads_is_left_alone(preload, scripts):
    said, _ = run([str(scripts / "say.py")], LD_PRELOAD=preload)
    assert said["allocator"] == "glibc"


@needs_one
def test_other_programs_are_left_alone(scripts):
    assert run(["-c", SAYS_ALL])[0]["allocator"] == "glibc"
    (scripts.parent / "elsewhere").mkdir()
    elsewhere = scripts.parent / "elsewhere" / "say.py"
    elsewhere.write_text(SAYS_ALL)
    assert run([str(elsewhere)])[0]["allocator"] == "glibc"
    (scripts.parent / "improved_diffusion" / "allocator.py").unlink()  # scripts of someone else's
    assert run([str(scripts / "say.py")])[0]["allocator"] == "glibc"


@pytest.mark.parametrize(
    ("before", "is_script"),
    [
        ([], True),
        (["-u", "-O"], True),
        (["-m", "pdb"], False),
        (["-mpdb"], False),
        (["-um", "pdb"], False),
        (["other.py"], False),
    ],
)
def test_a_script_under_another_program_is_left_alone(before, is_script, scripts, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(scripts / "say.py"), "--flag"])
    monkeypatch.setattr(sys, "orig_argv", ["python", *before, *sys.argv])
    assert allocator._runs_a_script() == is_script


@needs_one
def test_a_program_from_stdin_runs_once(scripts, monkeypatch):
    monkeypatch.chdir(scripts)
    said, _ = run(["-"], given=SAYS_ALL)
    assert said["allocator"] == "glibc"


def test_a_broken_library_does_not_keep_a_script_from_running(scripts, tmp_path):
    header = Path(sys.executable).read_bytes()[:20]
    (tmp_path / "libbroken.so").write_bytes(header)
    find = f"allocator._find = lambda _: {str(tmp_path / 'libbroken.so')!r}\n"
    program = "from improved_diffusion import allocator\n" + find + SAYS_ALL
    (scripts / "say.py").write_text(program)
    said, complaint = run([str(scripts / "say.py")])
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


@pytest.mark.parametrize("name", ["with space", "with:colon"])
def test_a_path_that_cannot_be_preloaded_is_not_taken(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / name))
    (tmp_path / name / "lib").mkdir(parents=True)
    (tmp_path / name / "lib" / "libsome.so").write_bytes(Path(sys.executable).read_bytes()[:20])
    assert allocator._find("libsome.so") is None


HOLDS = """
import json, sys
from pathlib import Path
from improved_diffusion import allocator

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

assert allocator.keep_freed_memory()
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


@needs_one
def test_an_allocator_with_other_settings_is_not_said_to_keep_memory():
    program = "from improved_diffusion import allocator; import sys; print('[', end='')\n"
    program += "print(str(allocator.keep_freed_memory()).lower(), ']'); sys.exit(7)"
    library = allocator._find(AVAILABLE[0].file)
    assert run(["-c", program], LD_PRELOAD=library)[0] == [False]
    assert run(["-c", program], LD_PRELOAD=library, **AVAILABLE[0].settings)[0] == [True]
