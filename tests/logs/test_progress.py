"""The bar and its plain lines, on terminals and into pipes."""

import contextlib
import os
import sys

import pytest

from improved_diffusion import dist_util
from improved_diffusion.logs import progress
from improved_diffusion.logs.formats import LineOutputFormat
from improved_diffusion.logs.progress import progress_bar

pty = pytest.importorskip("pty", reason="the system has no pseudo-terminals")


class Ends:
    """Both ends of a terminal or of a pipe: a file to write to, and what arrived."""

    def __init__(self, terminal):
        self.reader, writer = pty.openpty() if terminal else os.pipe()
        self.file = open(writer, "w")  # noqa: SIM115

    def arrived(self):
        self.file.close()
        os.set_blocking(self.reader, False)
        text = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(self.reader, 10000):
                text += part
        os.close(self.reader)
        return text.decode()


@pytest.mark.parametrize("bar_on_terminal", [True, False])
@pytest.mark.parametrize("lines_on_terminal", [True, False])
def test_log_lines_are_left_to_a_bar_on_the_same_terminal_only(
    lines_on_terminal, bar_on_terminal, monkeypatch
):
    stdout, stderr = Ends(lines_on_terminal), Ends(bar_on_terminal)
    monkeypatch.setattr(sys, "stdout", stdout.file)
    monkeypatch.setattr(sys, "stderr", stderr.file)
    with progress_bar(3, "step") as bar:
        line = LineOutputFormat()
        line.writeseq(["a", "message"])
        line.writekvs({"step": 0, "loss": 0.0123456789})
        bar.update()
    monkeypatch.undo()
    lines = stdout.arrived().split()
    assert lines[:2] == ["a", "message"]
    expected = [] if lines_on_terminal and bar_on_terminal else ["step", "0", "loss", "0.0123457"]
    assert lines[2:] == expected
    assert bool(stderr.arrived()) == bar_on_terminal


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


def lines_of(total, capsys, monkeypatch):
    """What is printed of 6 units of 10 seconds each, after 4 of an earlier run."""
    monkeypatch.setattr(progress, "time", clock := Clock())
    with progress_bar(total, "step", 4) as bar:
        for _ in range(6):
            clock.now += 10
            bar.update()
    return capsys.readouterr().out.splitlines()


def test_a_pipe_gets_the_rate_and_the_time_left_now_and_then(capsys, monkeypatch):
    assert lines_of(100, capsys, monkeypatch) == [
        "7 of 100 steps, 0.1 steps/s, 930 s left",
        "10 of 100 steps, 0.1 steps/s, 900 s left",
    ]


def test_work_without_end_has_no_time_left(capsys, monkeypatch):
    assert lines_of(None, capsys, monkeypatch)[0] == "7 steps, 0.1 steps/s"


def test_the_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setattr(dist_util, "rank", lambda: 1)
    assert lines_of(100, capsys, monkeypatch) == []


def test_a_log_that_says_as_much_needs_no_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    with progress.progress_bar(2, "step", lines=False) as bar:
        bar.update()
    assert capsys.readouterr().out == ""
