"""A bar with rate and time left on a terminal; nothing where output is piped."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from . import dist_util


class _NoBar:
    """Stands in for a tqdm bar where none is shown."""

    def update(self, count: int = 1) -> None: ...

    def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...


@contextlib.contextmanager
def progress_bar(total: int | None, unit: str, done: int = 0) -> Iterator[Any]:
    """Show a tqdm bar on rank 0's terminal; what is printed meanwhile goes above it.

    :param total: how many units there are; None for no end.
    :param done: how many are done already.
    """
    if dist_util.rank() > 0 or not sys.stderr.isatty():
        yield _NoBar()
        return
    from tqdm.auto import tqdm  # only where a bar is shown
    from tqdm.contrib import DummyTqdmFile

    with (
        tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True) as bar,
        contextlib.redirect_stdout(DummyTqdmFile(sys.stdout)),
    ):
        yield bar
