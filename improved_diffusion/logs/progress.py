"""A bar with rate and time left on a terminal; where output is piped, now and then a plain line."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from .. import dist_util

SECONDS_BETWEEN_LINES = 30


class _Silence:
    """Stands in for a tqdm bar where nothing is shown."""

    def update(self, count: int = 1) -> None: ...

    def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...


class _Lines(_Silence):
    """Stands in for a tqdm bar where output is piped: says the same on stdout, but rarely."""

    def __init__(self, total: int | None, unit: str, done: int):
        self.total, self.unit = total, unit
        self.first = self.done = done
        self.started = self.said = time.monotonic()

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            print(self._line(now - self.started), flush=True)

    def _line(self, seconds: float) -> str:
        rate = (self.done - self.first) / seconds
        paced = f"{self.unit}s, {rate:.3g} {self.unit}s/s"
        if self.total is None:
            return f"{self.done} {paced}"
        return f"{self.done} of {self.total} {paced}, {(self.total - self.done) / rate:.0f} s left"


@contextlib.contextmanager
def progress_bar(
    total: int | None, unit: str, done: int = 0, *, lines: bool = True
) -> Iterator[Any]:
    """Show a tqdm bar on rank 0's terminal; what is printed meanwhile goes above it.

    :param total: how many units there are; None for no end.
    :param done: how many are done already.
    :param lines: where no bar is shown, print a line now and then; False where a log does so.
    """
    is_first = dist_util.rank() == 0
    if not (is_first and sys.stderr.isatty()):
        yield _Lines(total, unit, done) if is_first and lines else _Silence()
        return
    from tqdm.auto import tqdm  # only where a bar is shown
    from tqdm.contrib import DummyTqdmFile

    above: Any = DummyTqdmFile(sys.stdout)
    with (
        tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True) as bar,
        contextlib.redirect_stdout(above),
    ):
        yield bar
