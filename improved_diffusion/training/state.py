"""Where a training stands: all that exact resuming needs besides weights, averages and moments."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch as th

from .. import dist_util, logger
from ..errors import InputError
from ..resample import ScheduleSampler

VERSION = 2
COUNTS = ("averaged", "planned")  # dictionaries of whole numbers
FIRST_KEYS = {"version", "updates", "last_row_step", "flags", "ranks", "precision"}


@dataclass
class RankState:
    """What each process keeps for itself; a new field's default is None, for older files.

    :param random: the global random generators, as :func:`random_state` tells them.
    :param sampler: what the sampler of timesteps has learned.
    :param data: the place in the data; None for data that cannot be resumed.
    :param log_line: the log line in the making.
    """

    random: dict[str, Any]
    sampler: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    log_line: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def now(cls, sampler: ScheduleSampler, data: Any) -> "RankState":
        """What this process has.

        :param data: the iterator of batches; without a ``state_dict`` it cannot be resumed.
        """
        return cls(
            random=random_state(),
            sampler=sampler.state_dict(),
            data=data.state_dict() if hasattr(data, "state_dict") else None,
            log_line=logger.get_current().state_dict(),
        )

    def restore(self, sampler: ScheduleSampler, data: Any, path: str) -> None:
        """Have this process go on from here, with the random numbers too.

        :param path: of the file that this is from.
        :raises InputError: if it is not what :meth:`now` finds in this process.
        """
        fresh = RankState.now(sampler, data)
        logger.get_current().load_state_dict(self.log_line)
        sampler.load_state_dict(self.sampler)
        if self.data is not None and hasattr(data, "load_state_dict"):
            data.load_state_dict(self.data)
        known, wanted = asdict(self), asdict(fresh)
        if self.data is not None and fresh.data is not None:  # older states have no classes
            known["data"] = fresh.data | self.data
        if not all(is_alike(known[k], wanted[k]) for k in known if known[k] is not None):
            raise InputError(f"{path} is no state of this run; move it away or restore it")
        restore_random_state(self.random)


@dataclass
class TrainState:
    """What ``stateNNNNNN.pt`` holds: a field here, with a default, is in every checkpoint.

    :param updates: finished updates, those before the last resume included.
    :param last_row_step: the step of the log's last row, from 0; -1 before the first.
    :param skipped: updates that were not finite and were skipped: all, and those in a row.
    :param seconds: of training: all, and those before the log's last row.
    :param averaged: how many updates each EMA has taken in, by its rate; only of EMAs that began
        with the run's first weights.
    :param planned: how many updates a time budget has room for, by its minutes, once that is fixed.
    :param precision: state of the number format, such as fp16's loss scale.
    :param flags: plain values, for whoever resumes.
    :param columns: of the log so far.
    :param ranks: what each process keeps for itself.
    """

    updates: int = 0
    last_row_step: int = -1
    skipped: list[int] = field(default_factory=lambda: [0, 0])
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    averaged: dict[str, int] = field(default_factory=dict)
    planned: dict[str, int] = field(default_factory=dict)
    precision: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    ranks: list[RankState] = field(default_factory=list)

    def as_file(self) -> dict[str, Any]:
        """Tensors and plain values, as the file has them."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_file(cls, content: Any, path: str) -> "TrainState":
        """The state in the content of the file ``path``.

        :raises InputError: if it is no run's state, or of another version.
        """
        version = content.get("version") if isinstance(content, dict) else None
        if not isinstance(version, int) or not content.keys() >= FIRST_KEYS:
            raise InputError(f"{path} is no run's state; move it away or restore it")
        if version != VERSION:
            raise InputError(
                f"{path} is of version {version}, this program reads {VERSION}; "
                "continue with the program that wrote it"
            )
        known, fresh = _known(cls, content), asdict(cls())
        ranks = known.pop("ranks", None)
        whole = (
            is_alike(known, {name: fresh[name] for name in known})
            and all(type(n) is int for name in COUNTS for n in known.get(name, {}).values())
            and bool(isinstance(ranks, list) and ranks)
            and all(isinstance(rank, dict) and "random" in rank for rank in ranks)
            and all(isinstance(rank.get("data"), (dict, type(None))) for rank in ranks)
        )
        if not whole:
            raise InputError(f"{path} is no run's state; move it away or restore it")
        return cls(**known, ranks=[RankState(**_known(RankState, rank)) for rank in ranks])

    def of_this_rank(self, path: str) -> RankState:
        """What this process kept.

        :raises InputError: if there are more or fewer processes than in the run that was saved.
        """
        if len(self.ranks) != dist_util.world_size():
            raise InputError(
                f"{path} is of a run of {len(self.ranks)} processes, this one has "
                f"{dist_util.world_size()}; start as many, or move the state file away"
            )
        return self.ranks[dist_util.rank()]


def _known(kind: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """What a dataclass has fields for; a field that is younger than the file has its default."""
    return {f.name: content[f.name] for f in fields(kind) if f.name in content}


def is_alike(value: Any, example: Any) -> bool:
    """Whether something from a file has the types, keys and shapes of what a run makes.

    None is an example of anything, an empty list of names, an empty dictionary of plain values by
    their names. What another machine adds, such as its GPU's random numbers, may be there or not.
    Whole numbers have no more than 64 bits: larger ones may be too large for a float.
    """
    if type(value) is int and not -(2**63) <= value < 2**63:
        return False
    if example is None:
        return True
    if isinstance(example, th.Tensor):
        mine, theirs = (
            (v.dtype, v.shape, v.layout, v.device.type) if isinstance(v, th.Tensor) else None
            for v in (value, example)
        )
        return mine == theirs
    if isinstance(example, float):
        return type(value) in (int, float)
    if type(value) is not type(example):
        return False
    if not isinstance(example, (dict, list)):
        return True
    if not example:
        plain = value.values() if isinstance(value, dict) else ()
        return all(isinstance(name, str) for name in value) and all(
            isinstance(each, (str, int, float, type(None))) and is_alike(each, None)
            for each in plain
        )
    if isinstance(example, dict):
        needed = example.keys() - {"cuda"}
        return value.keys() >= needed and all(is_alike(value[k], example[k]) for k in needed)
    return len(value) == len(example) and all(map(is_alike, value, example))


# -- random numbers ------------------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """State of the global generators of Python, numpy and torch, as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state()  # a tuple
    name, keys, position, has_gauss, cached = legacy
    state = {
        "python": [version, th.tensor(numbers, dtype=th.int64), gauss],
        "numpy": [name, th.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": th.get_rng_state(),
    }
    if th.cuda.is_available():
        state["cuda"] = th.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators where :func:`random_state` found them."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    th.set_rng_state(state["torch"])
    if "cuda" in state and th.cuda.is_available():
        th.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch; each rank gets its own stream."""
    seed = (seed + 1_000_003 * dist_util.rank()) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    th.manual_seed(seed)
