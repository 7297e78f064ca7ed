"""The key-value logger: gather named values, write them as one line to every output.

Functions of this module speak to the logger that :func:`configure` made last. Without a call to it,
the first use configures one with the defaults.
"""

import contextlib
import datetime
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from .errors import InputError
from .logs.formats import Writer, make_output_format, plain
from .system.files import is_local

DEBUG = 10
INFO = 20
WARN = 30
ERROR = 40
DISABLED = 50

KVWriter = SeqWriter = Writer  # the reference's names

_RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


class Averager(Protocol):
    """What averages log lines over processes; ``comm`` of a logger."""

    def weighted_mean(self, values: dict[str, tuple[float, int]]) -> dict[str, float]:
        """Give every process the mean of each key's ``(mean, count)`` pairs, weighted by count."""


class Logger:
    """Values of the line in the making, and the outputs that get it."""

    DEFAULT: ClassVar["Logger | None"] = None
    CURRENT: ClassVar["Logger | None"] = None

    def __init__(
        self,
        dir: str | None,
        output_formats: Sequence[Writer],
        comm: Averager | None = None,
    ):
        self.name2val: dict[str, Any] = {}
        self.name2cnt: dict[str, int] = {}
        self.level = INFO
        self.dir = dir
        self.output_formats = output_formats
        self.comm = comm

    def logkv(self, key: str, val: Any) -> None:
        """Set ``key`` in the current line, in place of what was there."""
        self.name2val[key] = val

    def logkv_mean(self, key: str, val: float) -> None:
        """Take ``val`` into the running mean that ``key`` has in the current line."""
        count = self.name2cnt.get(key, 0)
        mean = val / (count + 1)
        if count:
            mean += self.name2val[key] * count / (count + 1)
        self.name2val[key] = mean
        self.name2cnt[key] = count + 1

    def dumpkvs(self) -> dict[str, Any]:
        """Write the current line, averaged over processes if there is a ``comm``; begin a new one.

        :return: the line as written; empty, and nothing written, if nothing was logged.
        """
        line = {key: plain(value) for key, value in self.name2val.items()}
        if self.comm is not None:
            means = self.comm.weighted_mean(self._weighted(line))
            # Where all processes say the same, a whole number stays one.
            line |= {key: mean for key, mean in means.items() if line.get(key) != mean}
        if line:
            for output in self.output_formats:
                output.writekvs(line)
        self.name2val.clear()
        self.name2cnt.clear()
        return line

    def _weighted(self, line: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
        return {
            key: (float(value), self.name2cnt.get(key, 1))
            for key, value in line.items()
            if hasattr(value, "__float__")
        }

    def log(self, *args: Any, level: int = INFO) -> None:
        """Write a message, unless ``level`` is below the logger's."""
        if level < self.level:
            return
        for output in self.output_formats:
            output.writeseq(map(str, args))

    def set_level(self, level: int) -> None:
        """Write messages of this level and above from now on."""
        self.level = level

    def set_comm(self, comm: Averager | None) -> None:
        """Average lines over processes with ``comm`` from now on."""
        self.comm = comm

    def get_dir(self) -> str | None:
        """Return the folder of this logger's files."""
        return self.dir

    def close(self) -> None:
        """Close every output."""
        for output in self.output_formats:
            output.close()

    def state_dict(self) -> dict[str, dict]:
        """Return the line in the making, exactly, as plain Python numbers."""
        return {
            "values": {key: plain(value) for key, value in self.name2val.items()},
            "counts": dict(self.name2cnt),
        }

    def load_state_dict(self, state: Mapping[str, Mapping]) -> None:
        """Go on with a line from :meth:`state_dict`.

        :raises ValueError: if it is none.
        """
        numbers = [*state["values"].values(), *state["counts"].values()]
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError("no line of numbers")
        self.name2val = dict(state["values"])
        self.name2cnt = dict(state["counts"])


def configure(
    dir: str | os.PathLike | None = None,
    format_strs: Sequence[str] | None = None,
    comm: Averager | None = None,
    log_suffix: str = "",
) -> None:
    """Make the logger that this module's functions use from now on.

    :param dir: folder of its files, made if missing; default ``$OPENAI_LOGDIR``, else a new folder
        among the temporary files.
    :param format_strs: outputs, some of :data:`.logs.formats.OUTPUT_FORMATS`; default
        ``$OPENAI_LOG_FORMAT`` ("stdout,log,csv"), on processes of rank above 0
        ``$OPENAI_LOG_FORMAT_MPI`` ("log").
    :param comm: averages each line over processes.
    :param log_suffix: goes into the names of the files; ranks above 0 add their number.
    :raises InputError: if the folder cannot be written or a format is unknown or not installed.
    """
    dir = os.path.expanduser(dir or os.getenv("OPENAI_LOGDIR") or _temporary_dir())
    rank = _rank()
    if rank > 0:
        log_suffix += f"-rank{rank:03d}"
    if format_strs is None:
        format_strs = _default_formats(rank)
    outputs = _open_outputs(dir, [name for name in format_strs if name], log_suffix)
    Logger.CURRENT = Logger(dir=dir, output_formats=outputs, comm=comm)
    if outputs:
        log(f"Logging to {os.path.abspath(dir)}")


def _temporary_dir() -> str:
    name = datetime.datetime.now().strftime("openai-%Y-%m-%d-%H-%M-%S-%f")
    return os.path.join(tempfile.gettempdir(), name)


def _rank() -> int:
    """This process's number among those that were started together."""
    names = [name for name in _RANK_VARIABLES if os.getenv(name, "").isdecimal()]
    if "WORLD_SIZE" not in os.environ:  # without which RANK is somebody else's
        names = [name for name in names if name != "RANK"]
    return int(os.environ[names[0]]) if names else 0


def _default_formats(rank: int) -> list[str]:
    if rank == 0:
        return os.getenv("OPENAI_LOG_FORMAT", "stdout,log,csv").split(",")
    return os.getenv("OPENAI_LOG_FORMAT_MPI", "log").split(",")


def check_local(dir: str) -> None:
    """:raises InputError: if a log directory lies behind a URL."""
    if not is_local(dir):
        raise InputError(
            f"the log directory {dir} must be a local folder; "
            "for checkpoints elsewhere set DIFFUSION_BLOB_LOGDIR"
        )


def _open_outputs(dir: str, names: Sequence[str], suffix: str) -> list[Writer]:
    check_local(dir)
    try:
        os.makedirs(dir, exist_ok=True)
        once = dict.fromkeys(name.strip() for name in names)  # two writers would tear one file
        return [make_output_format(name, dir, suffix) for name in once]
    except OSError as error:
        raise InputError(
            f"cannot write to the log directory {dir} ({error.strerror}); "
            "choose another or change its permissions"
        ) from None


@contextlib.contextmanager
def scoped_configure(
    dir: str | os.PathLike | None = None,
    format_strs: Sequence[str] | None = None,
    comm: Averager | None = None,
) -> Iterator[None]:
    """Use another logger inside a ``with`` block; arguments as for :func:`configure`."""
    previous = Logger.CURRENT
    configure(dir=dir, format_strs=format_strs, comm=comm)
    scoped = get_current()
    try:
        yield
    finally:
        scoped.close()
        Logger.CURRENT = previous


def reset() -> None:
    """Close the logger in use and go back to the default one."""
    if Logger.CURRENT is not None and Logger.CURRENT is not Logger.DEFAULT:
        Logger.CURRENT.close()
        Logger.CURRENT = Logger.DEFAULT


def get_current() -> Logger:
    """Return the logger in use, configured with the defaults if there was none."""
    current = Logger.CURRENT
    if current is None:
        configure()
        current = Logger.DEFAULT = get_current()
    return current


def logkv(key: str, val: Any) -> None:
    """Set ``key`` in the current line; of several calls the last counts."""
    get_current().logkv(key, val)


def logkv_mean(key: str, val: float) -> None:
    """Take ``val`` into the running mean of ``key`` in the current line."""
    get_current().logkv_mean(key, val)


def logkvs(d: Mapping[str, Any]) -> None:
    """Set several keys in the current line."""
    for key, value in d.items():
        logkv(key, value)


def dumpkvs() -> dict[str, Any]:
    """Write the current line to every output and return it."""
    return get_current().dumpkvs()


def getkvs() -> dict[str, Any]:
    """Return the current line, not yet written."""
    return get_current().name2val


def log(*args: Any, level: int = INFO) -> None:
    """Write a message to the outputs for people, its parts joined by spaces."""
    get_current().log(*args, level=level)


def debug(*args: Any) -> None:
    """Write a message of level DEBUG."""
    log(*args, level=DEBUG)


def info(*args: Any) -> None:
    """Write a message of level INFO."""
    log(*args, level=INFO)


def warn(*args: Any) -> None:
    """Write a message of level WARN."""
    log(*args, level=WARN)


def error(*args: Any) -> None:
    """Write a message of level ERROR."""
    log(*args, level=ERROR)


def set_level(level: int) -> None:
    """Write messages of this level (DEBUG to DISABLED) and above from now on."""
    get_current().set_level(level)


def set_comm(comm: Averager | None) -> None:
    """Average lines over processes with ``comm`` from now on."""
    get_current().set_comm(comm)


def get_dir() -> str | None:
    """Return the folder in which the logger in use keeps its files."""
    return get_current().get_dir()


record_tabular = logkv
dump_tabular = dumpkvs


@contextlib.contextmanager
def profile_kv(scopename: str) -> Iterator[None]:
    """Add the seconds that a ``with`` block takes to ``wait_<scopename>`` in the current line."""
    key = f"wait_{scopename}"
    start = time.perf_counter()
    try:
        yield
    finally:
        logkv(key, getkvs().get(key, 0.0) + time.perf_counter() - start)


def profile(n: str) -> Callable[[Callable], Callable]:
    """Decorate a function so that its seconds are added up under ``wait_<n>``."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with profile_kv(n):
                return function(*args, **kwargs)

        return timed

    return decorate
