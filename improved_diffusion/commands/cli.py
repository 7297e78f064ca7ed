"""The frame in which every script runs: one-line errors and exit statuses."""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from .. import errors
from ..errors import DivergedError, InputError, is_lack_of_memory
from ..system.streams import make_streams_tolerant
from ..training.stopping import exit_on_signals


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and leave the process with the status that its outcome calls for.

    0 or what ``main`` returns; 2 and one line on stderr for input that cannot work; 1 and one
    line when the system fails (a full disk, a lost connection) or a training diverges; 130 for
    Ctrl-C, 143 for SIGTERM and 129 for SIGHUP, which end a script as orderly.
    """
    make_streams_tolerant()
    exit_on_signals()
    # Pillow's word on large pictures: whoever opens one here looks at its size first.
    warnings.filterwarnings("ignore", "Image size .* decompression bomb")
    try:
        status = main() or 0
        sys.stdout.flush()
    except InputError as error:
        status = _complain(error, 2)
    except (OSError, DivergedError) as error:
        status = _complain(error, 1)
    except (MemoryError, RuntimeError) as error:
        status = _complain(_explain(error), 1)
    except KeyboardInterrupt:
        status = _complain("interrupted", 130)
    sys.exit(status)


def check_out(path: str | os.PathLike, ending: str, flag: str = "out") -> None:
    """:raises InputError: if ``path`` is no file of that ending in a folder that exists."""
    out = Path(path)
    if out.suffix.lower() != ending or out.is_dir() or not out.absolute().parent.is_dir():
        raise InputError(f"--{flag} must be a {ending} file in a folder that exists, got {path}")


def say_replaced(*paths: str | os.PathLike) -> None:
    """Say which of the files that a script is about to write are there already.

    For what can be made anew from the files that it shows, and no more than for that.
    """
    for path in filter(os.path.exists, paths):
        print(f"Replacing {os.path.abspath(path)}")


def _explain(error: MemoryError | RuntimeError) -> str:
    """One line on an error that is nobody's defect.

    :raises RuntimeError: that error, if it is a defect.
    """
    if is_lack_of_memory(error):
        return f"not enough memory, take a smaller batch or model: {error}"
    from .. import dist_util  # which brings torch

    if not (isinstance(error, RuntimeError) and dist_util.is_of_a_lost_rank(error)):
        raise error
    return "another process of this run is gone"


def _complain(message: object, status: int) -> int:
    line = " ".join(str(message).split())
    if not errors.told_by_rank_0:
        print(f"{os.path.basename(sys.argv[0])}: error: {line}", file=sys.stderr)
    return status
