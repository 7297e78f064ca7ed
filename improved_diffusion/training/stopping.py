"""Stopping on request without losing anything."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

HANG_UP: Any = getattr(signal, "SIGHUP", None)  # which Windows does not have


def exit_on_signals() -> None:
    """Have SIGTERM and SIGHUP end this process by a ``SystemExit`` of 128 plus their number.

    Where SIGHUP is ignored, as under ``nohup``, it stays so.
    """
    signal.signal(signal.SIGTERM, _exit)
    if _hang_up_counts():
        signal.signal(HANG_UP, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    if number == HANG_UP:
        signal.signal(HANG_UP, signal.SIG_IGN)  # a shell sends another, while results are saved
    sys.exit(128 + number)


def _hang_up_counts() -> bool:
    return HANG_UP is not None and signal.getsignal(HANG_UP) is not signal.SIG_IGN


class StopSignals:
    """While open, the first SIGINT or SIGTERM only sets ``received``; the same one again acts at
    once.

    SIGHUP, which comes when a terminal or a connection closes, and often twice, only ever asks;
    where it is ignored it stays so. Outside the main thread, where Python delivers no signals,
    nothing changes.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}  # handlers

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM, *([HANG_UP] if _hang_up_counts() else [])]
            self._previous = {n: signal.signal(n, self._receive) for n in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._previous:
            self._restore(number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if number == HANG_UP:
            return
        self._restore(number)
        name = signal.Signals(number).name
        said = f"\n{name}: finishing this step and saving; once more stops at once\n"
        # Not by print: the signal may have come in the midst of one.
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), said.encode())

    def _restore(self, number: int) -> None:
        signal.signal(number, self._previous[number])
