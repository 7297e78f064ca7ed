"""Stopping on request without losing anything."""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """While open, the first SIGINT or SIGTERM only sets ``received``; a second one acts at once.

    Outside the main thread, where Python delivers no signals, it changes nothing.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}  # handlers

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._receive) for n in self.NUMBERS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        name = signal.Signals(number).name
        print(f"\n{name}: finishing this step and saving; once more stops at once", file=sys.stderr)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
