"""A run's folder: where it lies, who holds it, what it says about itself first and last."""

import argparse
import contextlib
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Set
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__, dist_util, logger
from ..errors import InputError
from ..system import cpu
from ..system.files import atomic_write_text, is_local, read_file, remove_leftovers
from ..training.checkpoints import join, list_folder
from ..training.previews import FOLDER as SAMPLES

PROJECT = Path(__file__).resolve().parents[2]
CONFIG_NAME = "config.json"
LOCK_NAME = ".lock"
VERSIONED = ("torch", "numpy", "pandas", "openpyxl", "pillow", "blobfile")
# What a run may change when it goes on; everything else shapes its numbers.
MAY_CHANGE = frozenset(
    {
        "compile",
        "data_dir",
        "ema_rate",
        "fp16_scale_growth",
        "keep_checkpoints",
        "log_dir",
        "log_interval",
        "lr",
        "lr_anneal_steps",
        "max_skipped",
        "max_steps",
        "num_threads",
        "num_workers",
        "on_bad_image",
        "precision",
        "resume_checkpoint",
        "sample_interval",
        "save_interval",
        "use_fp16",
        "weight_decay",
    }
)


# What a trained model may be used with whatever it was trained with.
FREE_AFTER_TRAINING = frozenset(
    {
        "dropout",
        "rescale_learned_sigmas",
        "sigma_small",
        "timestep_respacing",
        "use_checkpoint",
        "use_kl",
    }
)


def default_log_dir(script: str) -> str:
    """``$OPENAI_LOGDIR``, else ``runs/<script>-<date-time>`` of the project."""
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    return os.environ.get("OPENAI_LOGDIR") or str(PROJECT / "runs" / f"{script}-{now}")


def find_data_dir(data_dir: str, default: str = "cifar_train") -> str:
    """``data_dir``, or if none is given the project's ``datasets/<default>``.

    :raises InputError: if there is neither; names the commands that prepare data.
    """
    if data_dir:
        return data_dir
    cifar = PROJECT / "datasets" / default
    if cifar.is_dir():
        return str(cifar)
    raise InputError(
        f"no --data_dir given, and {cifar} does not exist; run `python datasets/cifar10.py` "
        "(downloads CIFAR-10) or `python datasets/digits.py` (needs no network) and give --data_dir"
    )


@contextlib.contextmanager
def open_run(
    script: str, log_dir: str, *, table: bool = False, checkpoints: bool = False
) -> Iterator[str]:
    """Configure the logger in the run's folder, and print that folder first and last.

    The folder is held until the block ends: a second run in it is refused, and a crash sets it
    free.

    :param script: name of the script, for the default folder.
    :param log_dir: the folder, or "" for :func:`default_log_dir`.
    :param table: whether the run logs values, for a progress.csv.
    :param checkpoints: whether it writes checkpoints; their folder is held too then.
    :return: absolute path of the folder.
    :raises InputError: on every rank, if a folder cannot be written, or another run holds it.
    """
    chosen = os.path.abspath(os.path.expanduser(log_dir or default_log_dir(script)))
    folder = dist_util.from_rank_0(chosen)  # the ranks' clocks may differ
    with contextlib.ExitStack() as stack:
        with dist_util.agreeing():
            if dist_util.rank() == 0:
                _take(folder, checkpoints, stack)
            comm = dist_util.RankAverager() if dist_util.world_size() > 1 else None
            logger.configure(folder, format_strs=_formats(table), comm=comm)
        try:
            yield folder
        finally:
            nothing_made = isinstance(sys.exc_info()[1], InputError)
            if dist_util.rank() == 0 and not nothing_made:
                print(f"Results are in {folder}", flush=True)


def _take(folder: str, checkpoints: bool, stack: contextlib.ExitStack) -> None:
    """Hold the run's folder, and that of its checkpoints; remove what killed runs left there."""
    stack.enter_context(_held(folder, "--log_dir"))
    remove_leftovers(folder)
    # In samples/ the training's own pictures only: image_sample.py may be writing others there.
    remove_leftovers(os.path.join(folder, SAMPLES), "[0-9]*.png")
    other = (checkpoints and os.environ.get("DIFFUSION_BLOB_LOGDIR")) or folder
    if is_local(other) and os.path.realpath(other) != os.path.realpath(folder):
        stack.enter_context(_held(other, "DIFFUSION_BLOB_LOGDIR"))
        remove_leftovers(other)


@contextlib.contextmanager
def _held(folder: str, named_by: str) -> Iterator[None]:
    from filelock import FileLock, Timeout  # comes with torch and blobfile

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


def _formats(table: bool) -> list[str] | None:
    """One plain line a log line rather than the reference's table, unless asked for otherwise."""
    if "OPENAI_LOG_FORMAT" in os.environ or dist_util.rank() > 0:
        return None
    return ["line", "log", "csv"] if table else ["line", "log"]


def write_config(folder: str, script: str, flags: Mapping[str, Any], **about: Any) -> None:
    """Write ``config.json``: flags, versions, processor and whatever else is known of the run.

    A run that goes on keeps the time of its start, and says when it was resumed. Where checkpoints
    go elsewhere, the file lies beside them too.
    """
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    started = _started(os.path.join(folder, CONFIG_NAME))
    config = {
        "script": script,
        "flags": dict(flags),
        **about,
        "versions": versions(),
        "processor": str(cpu.configured or cpu.processor_name()),
        **({"started": started, "resumed": now} if started else {"started": now}),
    }
    if dist_util.rank() == 0:
        text = json.dumps(config, indent=2, default=str) + "\n"
        for place in {folder, _folder_of_checkpoints() or folder}:
            atomic_write_text(join(place, CONFIG_NAME), text)


def _folder_of_checkpoints() -> str:
    """``$DIFFUSION_BLOB_LOGDIR``, made if it is missing."""
    folder = os.environ.get("DIFFUSION_BLOB_LOGDIR", "")
    try:
        if folder and is_local(folder):
            os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make DIFFUSION_BLOB_LOGDIR {folder} ({error.strerror}); set another"
        ) from None
    return folder


def _started(path: str) -> str | None:
    """When the run of an earlier ``config.json`` started, if there is one that says so."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))["started"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it computes with."""
    installed = {}
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return {"improved_diffusion": __version__, "python": platform.python_version(), **installed}


def find_config(model_path: str) -> str | None:
    """Path of the ``config.json`` beside a model's file, if there is one."""
    folder = os.path.dirname(model_path) or "."
    return join(folder, CONFIG_NAME) if CONFIG_NAME in list_folder(folder) else None


def adopt_config(
    args: argparse.Namespace, given: Set[str], model_path: str, keys: Set[str]
) -> dict[str, Any]:
    """Take the flags ``keys`` that were not given from ``config.json`` beside a model's file.

    :param given: names of the flags that the command line gives.
    :return: what ``config.json`` says of the data; empty where there is none.
    :raises InputError: if a given flag contradicts it; names all such with both values.
    """
    path = find_config(model_path)
    if path is None:
        return {}
    try:
        config = json.loads(read_file(path))
        trained, data = config["flags"], dict(config.get("data", {}))
        wrong = [k for k in keys & trained.keys() if type(trained[k]) is not type(getattr(args, k))]
        if wrong:
            raise TypeError(f"its {wrong[0]} is {trained[wrong[0]]!r}")
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a run's configuration ({error}); move it away") from None
    contradicting = []
    for key in sorted(keys & trained.keys()):
        if key not in given:
            setattr(args, key, trained[key])
        elif getattr(args, key) != trained[key] and key not in FREE_AFTER_TRAINING:
            contradicting.append(f"--{key} is {getattr(args, key)}, trained with {trained[key]}")
    if contradicting:
        raise InputError(f"{'; '.join(contradicting)} (see {path}); leave such flags out")
    return data


def check_resumed_flags(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compare the flags of a checkpoint with those of the run that goes on from it.

    Changes that do no harm are logged.

    :raises InputError: naming every flag that must stay, with both values.
    """
    changed = [key for key in saved.keys() & given.keys() if saved[key] != given[key]]
    fatal = sorted(key for key in changed if key not in MAY_CHANGE)
    if fatal:
        said = "; ".join(f"--{key} was {saved[key]} and is {given[key]} now" for key in fatal)
        raise InputError(f"cannot resume with other flags: {said}; give the checkpoint's values")
    for key in sorted(set(changed) - {"log_dir", "resume_checkpoint"}):
        logger.log(f"Resuming with --{key} {given[key]} (was {saved[key]})")


def command_to_continue(folder: str, checkpoint: str = "auto") -> str:
    """The command line that takes this run up again."""
    dropped = ("--log_dir", "--resume_checkpoint")
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word in dropped:
            next(words, None)
        elif not word.startswith(tuple(f"{flag}=" for flag in dropped)):
            kept.append(word)
    ranks = dist_util.world_size()
    several = ["torchrun", "--standalone", "--nproc_per_node", str(ranks)]
    launcher = ["python"] if ranks == 1 else several
    resumed = ["--log_dir", folder, "--resume_checkpoint", checkpoint]
    return shlex.join([*launcher, sys.argv[0], *kept, *resumed])
