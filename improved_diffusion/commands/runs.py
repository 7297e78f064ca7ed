"""A run's folder: where it lies, who holds it, what it says about itself first and last."""

import contextlib
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import __version__, dist_util, logger
from ..errors import InputError, as_word
from ..options.flags import Options
from ..options.training import RunningOptions
from ..options.using import ResultOptions
from ..system import cpu
from ..system.files import (
    CONFIG_NAME,
    LOCK_NAME,
    atomic_write_text,
    is_local,
    join,
    list_folder,
    parse_json,
    remove_leftovers,
)
from ..training.previews import FOLDER as SAMPLES
from ..training.state import seed_everything

LOG_NAME = "log.txt"
VERSIONED = ("torch", "numpy", "pandas", "openpyxl", "pillow", "blobfile")


def home() -> Path:
    """The project's folder; where the package is installed without it, the working folder."""
    project = Path(__file__).resolve().parents[2]
    return project if (project / "datasets" / "cifar10.py").is_file() else Path.cwd()


def default_log_dir(script: str) -> str:
    """``$OPENAI_LOGDIR``, else ``runs/<script>-<date-time>`` of :func:`home`."""
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    return os.environ.get("OPENAI_LOGDIR") or str(home() / "runs" / f"{script}-{now}")


def log_dir_of(script: str, options: RunningOptions) -> str:
    """Absolute path of the run's folder: ``log_dir``, or :func:`default_log_dir`.

    :raises InputError: if it lies behind a URL.
    """
    log_dir = options.log_dir or default_log_dir(script)
    logger.check_local(log_dir)
    return os.path.abspath(os.path.expanduser(log_dir))


def find_data_dir(data_dir: str, default: str = "cifar_train", flag_name: str = "data_dir") -> str:
    """``data_dir``, or if none is given ``datasets/<default>`` of :func:`home`.

    :param flag_name: of the flag that gives it.
    :raises InputError: if there is neither; names the commands that prepare data.
    """
    if data_dir:
        return data_dir
    cifar = home() / "datasets" / default
    if cifar.is_dir():
        return str(cifar)
    raise InputError(
        f"no --{flag_name} given, and {cifar} does not exist; run `python datasets/cifar10.py` "
        "(downloads CIFAR-10) or `python datasets/digits.py` (needs no network) and give "
        f"--{flag_name}"
    )


def prepare(options: RunningOptions, alone: bool = False) -> None:
    """Make this process ready: threads and memory, device, process group, random numbers.

    :param alone: whether it cannot share its work with other processes.
    :raises InputError: if there are others all the same.
    """
    cpu.configure_cpu(options.num_threads)
    dist_util.use_device(options.device)
    dist_util.setup_dist()
    seed_everything(options.seed)
    with dist_util.agreeing():
        if alone and dist_util.world_size() > 1:
            raise InputError(
                f"{os.path.basename(sys.argv[0])} works in one process: start it with python, "
                "without torchrun"
            )


@contextlib.contextmanager
def open_run(
    script: str,
    options: RunningOptions,
    *,
    trains: bool = False,
    results: Sequence[str] = (),
) -> Iterator[str]:
    """Configure the logger in the run's folder; print that first and, if it has results, last.

    The folder is held until the block ends: a second run in it is refused, and a crash sets it
    free.

    :param script: name of the script, for the default folder.
    :param options: name the folder, or leave it to :func:`default_log_dir`.
    :param trains: whether it writes a progress.csv and checkpoints; their folder is held too then.
    :param results: patterns of the files that the script makes; see :func:`new_results`.
    :return: absolute path of the folder.
    :raises InputError: on every rank, if a folder cannot be written, another run holds it, or it
        has results already.
    """
    folder = dist_util.by_rank_0(lambda: log_dir_of(script, options))  # by its clock
    with contextlib.ExitStack() as stack:
        with dist_util.agreeing():
            if dist_util.rank() == 0:
                _take(folder, trains, stack)
                overwrite = isinstance(options, ResultOptions) and options.overwrite
                stack.enter_context(new_results(folder, results, overwrite))
        # Only now, or rank 0 might take what others write for what a killed run has left.
        with dist_util.agreeing():
            comm = dist_util.RankAverager() if dist_util.world_size() > 1 else None
            logger.configure(folder, format_strs=_formats(trains), comm=comm)
        try:
            yield folder
        finally:
            nothing_made = isinstance(sys.exc_info()[1], InputError) or not _has_results(folder)
            if dist_util.rank() == 0 and not nothing_made:
                print(f"Results are in {folder}", flush=True)


def _has_results(folder: str) -> bool:
    """Whether there is more than what says that something was tried."""
    made = [name for name in list_folder(folder) if name not in (CONFIG_NAME, LOG_NAME)]
    paths = [Path(folder, name) for name in made if not name.startswith(".")]
    return any(path.is_dir() or path.lstat().st_size for path in paths)


@contextlib.contextmanager
def new_results(folder: str, patterns: Sequence[str], overwrite: bool) -> Iterator[None]:
    """Have a block write its results into a folder that has none yet, or replace them as a whole.

    What is replaced goes when the block has written anything of its own: an error before that
    leaves all as it was.

    :param patterns: of the files that the block makes. Those in folders within are only removed
        where there are others: without these, they may be anybody's.
    :raises InputError: if there are such files, and ``overwrite`` is false.
    """
    before = _identities(folder, patterns)
    if before and not overwrite:
        raise InputError(
            f"{folder} has results of this script already ({min(before).name}): give another "
            "--log_dir, or --overwrite True to replace them"
        )
    try:
        yield
    finally:
        after = _identities(folder, patterns)
        old = [path for path in before if after.get(path) == before[path]]
        made_here = any(path.parent == Path(folder) for path in before)
        if made_here and after != before:
            for path in old:
                path.unlink()
            print(f"Replaced {len(before)} files of an earlier call in {folder}", flush=True)


def _identities(folder: str, patterns: Sequence[str]) -> dict[Path, tuple[int, int]]:
    """What tells each file of those patterns from another that is written in its place."""
    found = (path for pattern in patterns for path in Path(folder).glob(pattern))
    files = {path: path.stat() for path in found if path.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in files.items()}


def _take(folder: str, trains: bool, stack: contextlib.ExitStack) -> None:
    """Hold the run's folder, and a training's of checkpoints; remove what killed runs left."""
    stack.enter_context(_held(folder, "--log_dir"))
    remove_leftovers(folder)
    # In samples/ the training's own pictures only: image_sample.py may be writing others there.
    remove_leftovers(os.path.join(folder, SAMPLES), "[0-9]*.png")
    other = (trains and os.environ.get("DIFFUSION_BLOB_LOGDIR")) or folder
    if is_local(other) and os.path.realpath(other) != os.path.realpath(folder):
        stack.enter_context(_held(other, "DIFFUSION_BLOB_LOGDIR"))
        remove_leftovers(other)


@contextlib.contextmanager
def _held(folder: str, named_by: str) -> Iterator[None]:
    try:
        os.makedirs(folder, exist_ok=True)
        lock = FileLock(os.path.join(folder, LOCK_NAME), timeout=0).acquire()
    except Timeout:
        raise InputError(
            f"another run is writing to {folder}; give another {named_by} or wait for it to end"
        ) from None
    except OSError as error:
        said = f"cannot write to the log directory {folder} ({error.strerror})"
        raise InputError(f"{said}; give another {named_by}") from None
    with lock:
        yield


def say_what_computes(precision: str) -> None:
    """Log the device and the processor, and what there is to know about it in that precision."""
    device = dist_util.dev()
    if device.type != "cpu":
        logger.log(f"Device: {device}")
    if cpu.configured is not None:
        logger.log(f"Processor: {cpu.configured}")
    if device.type == "cpu" and (advice := cpu.precision_advice(precision)):
        logger.log(advice)
    if warning := cpu.thread_warning():
        logger.warn(warning)


def _formats(trains: bool) -> list[str] | None:
    """One plain line a log line rather than the reference's table, unless asked for otherwise."""
    if "OPENAI_LOG_FORMAT" in os.environ or dist_util.rank() > 0:
        return None
    return ["line", "log", "csv"] if trains else ["line", "log"]


def write_config(folder: str, script: str, options: Options, **about: Any) -> None:
    """Write ``config.json``: flags, versions, processor and whatever else is known of the run.

    A run that goes on keeps the time of its start, and says when it was resumed. Where checkpoints
    go elsewhere, the file lies beside them too.
    """
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    started = _started(os.path.join(folder, CONFIG_NAME))
    config = {
        "script": script,
        "flags": options.as_dict(),
        **about,
        "versions": versions(),
        "processor": str(cpu.configured or cpu.processor_name()),
        **({"started": started, "resumed": now} if started else {"started": now}),
    }
    if dist_util.rank() == 0:
        text = json.dumps(config, indent=2, default=str) + "\n"
        for place in {folder, os.getenv("DIFFUSION_BLOB_LOGDIR") or folder}:
            atomic_write_text(join(place, CONFIG_NAME), text)


def _started(path: str) -> str | None:
    """When the run of an earlier ``config.json`` started, if there is one that says so."""
    try:
        return str(parse_json(Path(path).read_bytes())["started"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it computes with."""
    installed = {}
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return {"improved_diffusion": __version__, "python": platform.python_version(), **installed}


def check_resumed_flags(saved: Mapping[str, Any], options: Options) -> None:
    """Compare the flags of a checkpoint with those of the run that goes on from it.

    A flag that is younger than the checkpoint had its default there. Changes that do no harm are
    logged.

    :raises InputError: naming every flag that must stay, with both values.
    """
    if not saved:  # by a program that kept none
        return
    given, before = options.as_dict(), options.defaults() | dict(saved)
    changed = [name for name in sorted(given) if before[name] != given[name]]
    rules = options.flags()
    fatal = [name for name in changed if rules[name].on_resume != "may change"]
    if fatal:
        said = "; ".join(
            f"--{name} was {as_word(before[name])} and is {as_word(given[name])} now"
            for name in fatal
        )
        raise InputError(f"cannot resume with other flags: {said}; give the checkpoint's values")
    for name in changed:
        if name in saved and name not in ("log_dir", "resume_checkpoint"):
            logger.log(f"Resuming with --{name} {given[name]} (was {before[name]})")


def command_to_continue(folder: str, checkpoint: str = "auto") -> str:
    """The command line that takes this run up again."""
    dropped = ("--log_dir", "--resume_checkpoint")
    given = iter(sys.argv[1:])
    kept = []
    for word in given:
        if word in dropped:
            next(given, None)
        elif not word.startswith(tuple(f"{flag}=" for flag in dropped)):
            kept.append(word)
    ranks = dist_util.world_size()
    several = ["torchrun", "--standalone", "--nproc_per_node", str(ranks)]
    launcher = ["python"] if ranks == 1 else several
    resumed = ["--log_dir", folder, "--resume_checkpoint", checkpoint]
    words = [*launcher, sys.argv[0], *kept, *resumed]
    elsewhere = os.environ.get("DIFFUSION_BLOB_LOGDIR")
    if os.name == "nt":  # for cmd.exe
        there = f'set "DIFFUSION_BLOB_LOGDIR={elsewhere}" && ' if elsewhere else ""
        return there + subprocess.list2cmdline(words)
    there = f"DIFFUSION_BLOB_LOGDIR={shlex.quote(elsewhere)} " if elsewhere else ""
    return there + shlex.join(words)
