"""Checkpoints: atomic files, finding them, and everything that is needed to go on exactly.

A checkpoint after NNNNNN updates is ``modelNNNNNN.pt``, one ``ema_RATE_NNNNNN.pt`` a rate,
``optNNNNNN.pt`` and ``stateNNNNNN.pt``. The last appears last and goes first, so a checkpoint is
complete when it is there.
"""

import contextlib
import copy
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch as th

from .. import dist_util, logger
from ..errors import InputError
from ..models.architecture import Weights, check_fit, is_plain
from ..system.archives import find_damage
from ..system.files import (
    CONFIG_NAME,
    atomic_files,
    is_local,
    join,
    list_folder,
    move_file,
    opener,
    remove_file,
    sync_folder,
)
from .state import TrainState

PART = re.compile(r"(state|model|opt|ema_[0-9.e-]+_)(?P<step>\d{6}|[1-9]\d{6,})\.pt")
EMA_NAME = r"ema_(\d+(?:\.\d+)?(?:e-\d+)?)_(\d{6,})\.pt"  # rate and updates
BROKEN = ".broken"  # ends the names of a broken checkpoint's files
INITIAL = "model000000.pt"  # the weights that a run began with, kept to take them out of its EMAs
SETTLED = 0.05  # share of the initial weights that an EMA may hold before sampling from it warns


@dataclass
class Part:
    """One file of a checkpoint.

    :param prefix: how its name begins.
    :param content: what to save.
    :param load: takes the content of the file at a path.
    :param otherwise: what a resumed run does without the file, for a message; a run cannot do
        without the first part of a checkpoint, the model.
    """

    prefix: str
    content: Callable[[], Any]
    load: Callable[[str], None]
    otherwise: str


def save_parts(folder: str, step: int, parts: Iterable[Part]) -> str:
    """:func:`save_checkpoint` with what is in the parts now."""
    return save_checkpoint(folder, step, {part.prefix: part.content() for part in parts})


def load_parts(path: str, step: int, parts: Iterable[Part]) -> list[str]:
    """Load the parts of a checkpoint in their order.

    :param path: of the first part, the model's file; the others lie beside it.
    :return: what is not there, and what a run does without it, in words.
    :raises InputError: if a file is unsafe or does not fit.
    """
    model, *others = parts
    with _refusing(path):
        model.load(path)
    missing = []
    for part in others:
        if beside := companion(path, part.prefix, step):
            with _refusing(beside):
                part.load(beside)
        else:
            missing.append(f"{part.prefix.rstrip('_')} ({part.otherwise})")
    return missing


@contextlib.contextmanager
def _refusing(path: str) -> Iterator[None]:
    """Refuse a file whose odd content makes what loads it fail."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise InputError(f"{path} cannot be used ({e!r}); move it away or restore it") from e


def save_checkpoint(folder: str, step: int, parts: Mapping[str, Any]) -> str:
    """Write the parts of a checkpoint, which appear together when all are whole, ``state`` last.

    :param parts: content of each file by the beginning of its name: ``model``, ``ema_0.9999_``,
        ``opt``, ``state``.
    :return: path of the model's file.
    :raises OSError: if the disk is full; every checkpoint that was complete still is, and nothing
        is left of one that was not.
    """
    _remove_stale_state(folder, step)
    with atomic_files() as start:
        for prefix in sorted(parts, key=lambda name: name == "state"):
            with start(join(folder, f"{prefix}{step:06d}.pt")) as file:
                is_weights = prefix == "model" or prefix.startswith("ema")
                th.save(_apart(parts[prefix]) if is_weights else parts[prefix], file)
    return model_path(folder, step)


class InitialPart(NamedTuple):
    """The initial weights in an EMA: their share, and the file to take them out with, if any."""

    share: float
    path: str | None


def initial_part(path: str, correct: bool = True) -> InitialPart:
    """What a model's file holds of a run's initial weights: nothing, if it is no EMA.

    Nor does an EMA that began with weights that were trained already, as the state beside it tells.

    :param correct: whether they are to be taken out; else only the file's name is looked at.
    :raises InputError: if they were kept, and the state cannot be read.
    """
    match = re.search(rf"(?:^|[/\\]){EMA_NAME}$", path)
    if not match:
        return InitialPart(0.0, None)
    rate, count = match.group(1), int(match.group(2))
    by_name = InitialPart(float(rate) ** count, None)
    if not correct:
        return by_name
    kept = companion(path, "model", 0)
    if beside := companion(path, "state", count):
        try:
            content = dist_util.load_state_dict(beside, map_location="cpu")
            averaged = TrainState.from_file(content, beside).averaged
        except InputError:
            if kept:
                raise
            return by_name
        if "averaged" not in content:  # an old one
            return by_name
        if rate not in averaged:
            return InitialPart(0.0, None)
        count = averaged[rate]
    return InitialPart(float(rate) ** count, kept if count else None)


def without_initial(average: Weights, initial: Weights, share: float) -> dict[str, th.Tensor]:
    """An EMA as if it had begun with nothing: (ema - share initial) / (1 - share).

    Adam corrects its moments the same way (Kingma & Ba 2014, arXiv 1412.6980, section 3).

    :param share: the EMA's rate to the power of its updates, below 1.
    """

    def corrected(value: th.Tensor, first: th.Tensor) -> th.Tensor:
        whole = value.cpu().double() - share * first.cpu().double()  # not every device has float64
        return (whole / (1 - share)).to(value)

    return {name: corrected(value, initial[name]) for name, value in average.items()}


def _apart(weights: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    """A ``state_dict`` with a copy of each tensor that is a part of a larger one.

    In a file such tensors would share memory, which other programs refuse or lose.
    """
    apart = copy.copy(weights)  # with its attributes
    for name, tensor in weights.items():
        if tensor.untyped_storage().nbytes() > tensor.nbytes:
            apart[name] = tensor.clone()
    return apart


def _remove_stale_state(folder: str, step: int) -> None:
    """Remove a torn checkpoint's state, with which the first files of a new one would count."""
    name = f"state{step:06d}.pt"
    if step not in complete_steps(folder) and name in list_folder(folder):
        remove_file(join(folder, name))
        if is_local(folder):
            sync_folder(folder)


def remove_initial_weights(folder: str) -> None:
    """Remove the initial weights of another run, with which this one's would be mistaken."""
    if INITIAL in list_folder(folder):
        remove_file(join(folder, INITIAL))


def complete_steps(folder: str) -> list[int]:
    """Numbers of updates of the complete checkpoints in ``folder``, ascending."""
    return [
        step
        for step, names in _files(folder).items()
        if all(f"{kind}{step:06d}.pt" in names for kind in ("state", "model"))
    ]


def incomplete_parts(folder: str) -> dict[int, list[str]]:
    """Names of the files of checkpoints that lack their model or their state, by their updates."""
    whole = {0, *complete_steps(folder)}  # what began a run is no checkpoint
    return {step: names for step, names in _files(folder).items() if step not in whole}


def newest_checkpoint(folder: str) -> str | None:
    """Path of the model's file of the newest complete checkpoint in ``folder``."""
    steps = complete_steps(folder)
    return model_path(folder, steps[-1]) if steps else None


def check_continues(folder: str, resume_checkpoint: str, keep: int = 0) -> None:
    """Refuse to mix the checkpoints and the log of two runs.

    :param keep: how many checkpoints are to be kept, or 0 for all.
    :raises InputError: if ``folder`` holds a run and ``resume_checkpoint`` is not its newest, or
        weights without a run's state that would be replaced or removed.
    """
    newest = newest_checkpoint(folder)
    by_variable = os.getenv("DIFFUSION_BLOB_LOGDIR", "")
    other = "another DIFFUSION_BLOB_LOGDIR" if by_variable else "another folder (--log_dir)"
    if newest and os.path.realpath(resume_checkpoint) != os.path.realpath(newest):
        raise InputError(
            f"{os.path.dirname(newest)} already holds a run, up to {os.path.basename(newest)}; "
            f"continue it (--resume_checkpoint auto, in Python its path), or take {other}"
        )
    if newest or not (parts := incomplete_parts(folder)):
        return
    latest = max(parts)
    begins_here = lies_in(resume_checkpoint, folder) and not keep
    if not (begins_here and parse_resume_step_from_filename(resume_checkpoint) == latest):
        raise InputError(
            f"{folder} has {parts[latest][-1]} without a run's state, which would be replaced or "
            f"removed: take {other}, and name a model*.pt as --resume_checkpoint to begin with it"
        )


def model_path(folder: str, step: int) -> str:
    """Path of the model's file of a checkpoint."""
    return join(folder, f"model{step:06d}.pt")


def files_of(folder: str, step: int) -> list[str]:
    """Names of the files of a checkpoint, the state's first."""
    return _files(folder).get(step, [])


def _files(folder: str) -> dict[int, list[str]]:
    """Names of the files of all checkpoints by their updates, ascending; each state's first."""
    found: dict[int, list[str]] = {}
    for part in filter(None, map(PART.fullmatch, list_folder(folder))):
        found.setdefault(int(part["step"]), []).append(part.string)
    return {
        step: sorted(names, key=lambda name: not name.startswith("state"))
        for step, names in sorted(found.items())
    }


def damage_of(folder: str, step: int) -> str:
    """Which files of a checkpoint are not as they were written, and why; "" if all are."""
    damages = {}
    for name in files_of(folder, step):
        with opener(join(folder, name))() as file:
            damages[name] = find_damage(file)
    return ", ".join(f"{name}: {damage}" for name, damage in damages.items() if damage)


def newest_whole_checkpoint(folder: str) -> tuple[str | None, dict[int, str]]:
    """The newest complete checkpoint in ``folder`` of which every file is as it was written.

    :return: path of its model's file, or None; and the damage of each newer one, by updates.
    """
    damages: dict[int, str] = {}
    for step in reversed(complete_steps(folder)):
        damage = damage_of(folder, step)
        if not damage:
            return model_path(folder, step), damages
        damages[step] = damage
    return None, damages


def set_aside(folder: str, names: Iterable[str]) -> None:
    """Add :data:`BROKEN` to the names of a checkpoint's files, so that it counts no more."""
    for name in names:
        move_file(join(folder, name), join(folder, f"{name}{BROKEN}"))


def choose_ema(folder: str) -> str:
    """Path of the EMA to sample from: the newest, and of several rates :func:`best_ema_rate`.

    It is of a complete checkpoint, or if none has an EMA, as in the published code's folders, of
    any.

    :raises InputError: if the folder has no EMA.
    """
    found: dict[int, dict[float, str]] = {}  # names by step and rate
    for name in list_folder(folder):
        if match := re.fullmatch(EMA_NAME, name):
            found.setdefault(int(match.group(2)), {})[float(match.group(1))] = name
    steps = found.keys() & complete_steps(folder) or found.keys()
    if not steps:
        raise InputError(f"{folder} has no ema_*.pt: {_why_no_ema(list_folder(folder))}")
    step = max(steps)
    return join(folder, found[step][best_ema_rate(found[step], step)])


def _why_no_ema(names: Sequence[str]) -> str:
    if any(PART.fullmatch(name) and name != INITIAL for name in names):
        return "name a model*.pt in it"
    if INITIAL in names or CONFIG_NAME in names:
        return (
            "its training writes the first checkpoint after --save_interval updates, and when it "
            "is stopped by Ctrl-C"
        )
    return "it is no run's folder"


def best_ema_rate(rates: Iterable[float], step: int) -> float:
    """The highest rate which holds no more than :data:`SETTLED` of the initial weights after
    ``step`` updates, or else the lowest rate.
    """
    ascending = sorted(rates)
    settled = [rate for rate in ascending if rate**step <= SETTLED]
    return settled[-1] if settled else ascending[0]


def remove_older_checkpoints(folder: str, keep: int) -> None:
    """Delete all but the newest ``keep`` complete checkpoints, and what is left of older torn ones.

    0 keeps all. The initial weights stay in any case.
    """
    steps = complete_steps(folder)
    if not (keep and steps):
        return
    for step, names in _files(folder).items():
        if step < steps[-1] and step not in steps[-keep:]:
            try:
                # Its state goes first: what is left, should this be interrupted, does not count.
                for name in names:
                    if name != INITIAL:
                        remove_file(join(folder, name))
            except OSError as error:  # as where another program has it open, on Windows
                logger.warn(f"Cannot remove the older checkpoint {step:06d} yet: {error}")


def parse_resume_step_from_filename(filename: str) -> int:
    """The NNNNNN of ``path/to/modelNNNNNN.pt``; 0 for a name of another form."""
    match = re.search(r"model(\d+)\.[^./\\]*$", filename)
    return int(match.group(1)) if match else 0


def companion(model_path: str, prefix: str, step: int) -> str | None:
    """Path of ``<prefix>NNNNNN.pt`` beside a model's file, if it is there."""
    folder = re.split(r"[^/\\]*$", model_path)[0] or "."
    name = f"{prefix}{step:06d}.pt"
    return join(folder, name) if name in list_folder(folder) else None


def lies_in(path: str, folder: str) -> bool:
    """Whether the file ``path``, or what it links to, lies in ``folder``."""
    files = [path, os.path.realpath(path)] if path and is_local(path) else filter(None, [path])
    return os.path.realpath(folder) in (os.path.realpath(os.path.dirname(file)) for file in files)


def load_model_file(path: str) -> dict[str, th.Tensor]:
    """Load a model's or an EMA's ``state_dict``.

    :raises InputError: if the file is missing, unsafe, or another part of a checkpoint.
    """
    state = dist_util.load_state_dict(path, map_location="cpu")
    if isinstance(state, dict) and {"state", "param_groups"} <= state.keys():
        raise InputError(f"{path} is an optimizer's file; give the model*.pt or ema_*.pt beside it")
    if isinstance(state, dict) and "version" in state and "updates" in state:
        raise InputError(f"{path} is a run's state; give the model*.pt or ema_*.pt beside it")
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and is_plain(value) for name, value in state.items()
    ):
        raise InputError(f"{path} holds no model weights; give a model*.pt or ema_*.pt file")
    return state


def load_optimizer_file(path: str) -> dict[str, Any]:
    """:raises InputError: if the file is missing, unsafe, or no optimizer's."""
    state = dist_util.load_state_dict(path, map_location="cpu")
    try:
        whole = all("params" in group for group in state["param_groups"])
        moments = [value for values in state["state"].values() for value in values.values()]
        whole &= all(isinstance(value, (int, float)) or is_plain(value) for value in moments)
    except (AttributeError, TypeError, LookupError):
        whole = False
    if not whole:
        raise InputError(f"{path} is no optimizer's file; move it away or restore it")
    return state


def is_for(params: Sequence[th.Tensor], state: Mapping[str, Any]) -> bool:
    """Whether an optimizer's file is for as many parameters, of the same shapes, as ``params``."""
    groups = state["param_groups"]
    if len(groups) != 1 or len(groups[0]["params"]) != len(params):
        return False
    moments = [state["state"].get(number, {}) for number in groups[0]["params"]]
    keys = ("exp_avg", "exp_avg_sq")
    return all(
        not own or ("step" in own and all(key in own and own[key].shape == p.shape for key in keys))
        for own, p in zip(moments, params, strict=True)
    )


def load_state_file(path: str) -> TrainState:
    """:raises InputError: if the file is missing, unsafe, or no run's state of this version."""
    return TrainState.from_file(dist_util.load_state_dict(path, map_location="cpu"), path)


def load_into(model: th.nn.Module, path: str) -> None:
    """Load a model's or an EMA's file into ``model``.

    :raises InputError: if it cannot be loaded, or does not fit; names the flag that differs.
    """
    weights = load_model_file(path)
    check_fit(model, weights, path)
    model.load_state_dict(weights)


def load_into_optimizer(opt: th.optim.Optimizer, params: Sequence[th.Tensor], path: str) -> None:
    """Load an optimizer's file into ``opt``, which keeps its settings, such as the learning rate.

    The moments of a file of another layout stay at zero, and that is said: published fp16 runs
    keep one flat tensor.

    :param params: the model's parameters.
    :raises InputError: if it cannot be loaded.
    """
    fresh = opt.state_dict()["param_groups"]
    state = load_optimizer_file(path)
    if not is_for(params, state):
        logger.warn(f"{path} is for another layout of the weights; its moments start at zero")
        return
    groups = zip(fresh, state["param_groups"], strict=True)
    state["param_groups"] = [{**new, "params": old["params"]} for new, old in groups]
    opt.load_state_dict(state)
