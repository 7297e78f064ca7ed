"""Streams whose readers go away, or whose encoding lacks characters."""

import io
import os
import subprocess
import sys

import pytest

from improved_diffusion.system.streams import tolerant

TALK = """
import sys
from improved_diffusion.commands.cli import run
def main():
    for number in range(3):
        print("2.5 ± 0.1, Läufe/試し, \\udcff", flush=True)
        print("noted ±", file=sys.stderr)
    open(sys.argv[1], "w").close()
run(main)
"""


def talk(tmp_path, **settings):
    """Run a script that prints and then writes a file; whether it came so far, and how it ended."""
    words = [sys.executable, "-c", TALK, str(tmp_path / "end")]
    done = subprocess.run(words, check=False, **settings)
    return (tmp_path / "end").exists(), done


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932", "utf-8"])
def test_no_character_is_too_much_for_an_encoding(tmp_path, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    came_to_its_end, done = talk(tmp_path, env=environment, capture_output=True)
    assert came_to_its_end
    assert done.returncode == 0
    shown = "2.5 ± 0.1, Läufe/試し, \udcff".encode(encoding, errors="backslashreplace")
    assert done.stdout.splitlines() == [shown] * 3
    assert done.stderr.splitlines() == ["noted ±".encode(encoding, errors="backslashreplace")] * 3


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_reader_that_went_away_ends_nothing(tmp_path, kind):
    make = os.pipe if kind == "pipe" else pytest.importorskip("pty").openpty
    reading, writing = make()
    os.close(reading)
    came_to_its_end, done = talk(tmp_path, stdout=writing, stderr=writing)
    os.close(writing)
    assert came_to_its_end
    assert done.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_output_ends_nothing(tmp_path):
    with open("/dev/full", "w") as full:
        came_to_its_end, done = talk(tmp_path, stdout=full, stderr=full)
    assert came_to_its_end
    assert done.returncode == 0


def test_streams_that_were_closed_at_the_start_end_nothing(tmp_path):
    words = [sys.executable, "-c", TALK, str(tmp_path / "end")]
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *words], check=False)
    assert (tmp_path / "end").exists()
    assert done.returncode == 0


def test_what_is_no_file_is_left_alone():
    stream = io.StringIO()
    assert tolerant(stream) is stream
