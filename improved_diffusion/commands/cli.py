"""The frame in which every script runs: flags, one-line errors, exit statuses."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from ..errors import DivergedError, InputError
from ..system.allocator import restart_with_faster_one

restart_with_faster_one()  # here, as this is what a script imports first


class Parser(argparse.ArgumentParser):
    """An argument parser that shows each default in ``--help`` and says errors in one line."""

    def __init__(self, description: str | None = None, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(description=description, allow_abbrev=False, **kwargs)

    def parse_args_and_given(self) -> tuple[argparse.Namespace, set[str]]:
        """The flags, and the names of those that the command line gives."""
        args = self.parse_args()
        defaults = [(action, action.default) for action in self._actions]
        try:
            for action, _ in defaults:
                action.default = argparse.SUPPRESS
            given = set(vars(self.parse_args()))
        finally:
            for action, default in defaults:
                action.default = default
        return args, given

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def str2bool(value: str | bool) -> bool:
    """Read a truth value written as a word: yes/no, true/false, t/f, y/n, 1/0."""
    if isinstance(value, bool):
        return value
    word = value.lower()
    if word in ("yes", "true", "t", "y", "1"):
        return True
    if word in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, got {value!r}")


def _say_interrupted(kind: type, error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):  # while a script still imports, outside of run
        _complain("interrupted", 130)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _say_interrupted


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and leave the process with the status that its outcome calls for.

    0 or what ``main`` returns; 2 and one line on stderr for input that cannot work; 1 and one
    line when the system fails (a full disk, a lost connection) or a training diverges; 130 for
    Ctrl-C, and 143 for SIGTERM, which ends a script as orderly.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        status = main() or 0
        sys.stdout.flush()
    except InputError as error:
        status = _complain(error, 2)
    except BrokenPipeError:  # the reader of a pipe went away: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except (OSError, DivergedError) as error:
        status = _complain(error, 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise  # a defect; torch has no class of its own for memory that runs out
        status = _complain(f"not enough memory, take a smaller batch or model: {error}", 1)
    except KeyboardInterrupt:
        status = _complain("interrupted", 130)
    sys.exit(status)


def _complain(message: object, status: int) -> int:
    line = " ".join(str(message).split())
    if not getattr(message, "is_said_elsewhere", False):  # by rank 0 of several processes
        print(f"{os.path.basename(sys.argv[0])}: error: {line}", file=sys.stderr)
    return status
