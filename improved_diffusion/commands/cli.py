"""The frame in which every script runs: one-line errors and exit statuses."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from ..errors import DivergedError, InputError, ToldByRank0


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
    if not isinstance(message, ToldByRank0):
        print(f"{os.path.basename(sys.argv[0])}: error: {line}", file=sys.stderr)
    return status
