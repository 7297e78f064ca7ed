"""Ranks, devices and the few collectives that the project needs.

Every function also works where there is no process group: there is one rank then, and nothing is
sent anywhere.
"""

import atexit
import contextlib
import gc
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import torch as th
import torch.distributed as dist

from . import errors
from .errors import InputError
from .system.archives import find_damage
from .system.files import opener

if dist.is_available():
    # Imported before any group exists: a default argument of its functions is the group at the
    # time of the import, which would live on, with its threads, until after Python has gone.
    import torch.distributed.nn.functional

T = TypeVar("T")
# How long ranks wait for one that works alone, as when it judges. The end of a process is noticed
# at once, and joining has PyTorch's limit.
PATIENCE = timedelta(days=1)

_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
DEVICES = ("auto", "cpu", "cuda", "mps")
_device = "auto"  # what use_device was given
_leaving_together = False


def use_device(name: str) -> None:
    """Choose what this process computes on, before :func:`setup_dist`: one of :data:`DEVICES`.

    :raises InputError: if this machine does not have it.
    """
    global _device
    find_device(name)
    _device = name


def find_device(name: str) -> th.device:
    """The device that :func:`use_device` would choose.

    ``auto`` is this rank's CUDA GPU, or the CPU where there is none. It is never Apple's ``mps``,
    with which this project is not tested.

    :raises InputError: if ``name`` is none of :data:`DEVICES`, or this machine does not have it.
    """
    has = {"cpu": True, "cuda": th.cuda.is_available(), "mps": th.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if has["cuda"] else "cpu"
    if name not in has:
        raise InputError(f"unknown device {name!r}; choose from {', '.join(DEVICES)}")
    if not has[name]:
        raise InputError(f"PyTorch finds no device {name} here; give --device auto or cpu")
    return th.device(name, _gpu()) if name == "cuda" else th.device(name)


def _gpu() -> int:
    count = th.cuda.device_count()
    number = int(os.environ.get("LOCAL_RANK", rank() % count))
    if number >= count:
        raise InputError(
            f"process {number} finds no GPU of its own, of {count} here: start {count} at most, or "
            "give --device cpu"
        )
    return number


def dev() -> th.device:
    """The device that this process computes on: see :func:`use_device`."""
    return find_device(_device)


def setup_dist() -> None:
    """Make the process group, unless there is one.

    Under ``torchrun`` (or anything else that sets RANK and WORLD_SIZE) it joins the others:
    NCCL on GPUs, where there is NCCL, else gloo. Launched alone it makes a group of one, which
    keeps its state in this process and talks over the loopback interface only. A PyTorch without
    ``torch.distributed`` makes no group, and everything here works without one.

    :raises InputError: if several processes are launched with a PyTorch that cannot join them, by
        MPI, or without what they need to find each other.
    """
    launched = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    if not dist.is_available():
        if launched and os.environ["WORLD_SIZE"] != "1":
            raise InputError("this PyTorch has no torch.distributed; start one process alone")
        return
    if dist.is_initialized():
        return
    if not launched and any(os.environ.get(name, "1") != "1" for name in _MPI_SIZES):
        raise InputError(
            "processes do not find each other by MPI here: start them with torchrun, or each alone "
            f"without {' and '.join(_MPI_SIZES)}"
        )
    on_gpu = dev().type == "cuda"
    if on_gpu:
        th.cuda.set_device(dev())
    backend = "nccl" if on_gpu and dist.is_nccl_available() else "gloo"
    atexit.register(_leave)
    if launched:
        try:
            store, number, count = next(dist.rendezvous("env://"))
        except ValueError as error:  # RANK and WORLD_SIZE alone do not say where the others are
            raise InputError(f"cannot join the other processes ({error}): use torchrun") from error
        place = {"store": store, "rank": number, "world_size": count}
        dist.init_process_group(backend, **place, timeout=PATIENCE)
        return
    with _loopback_only():
        dist.init_process_group(backend, store=_own_store(), rank=0, world_size=1)


def _own_store() -> "dist.Store":
    """Where a group of one keeps its state."""
    if hasattr(dist, "HashStore"):
        return dist.HashStore()
    descriptor, path = tempfile.mkstemp()  # Windows has no HashStore; this one removes its file
    os.close(descriptor)
    return dist.FileStore(path, 1)


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _leave() -> None:
    """End the group's threads, which may abort the process if they outlive Python."""
    gc.collect()  # a loop that is over but not collected holds the group too
    if _has_group():
        if _leaving_together:  # a launcher ends all when one has gone, before rank 0 has spoken
            with contextlib.suppress(RuntimeError):
                dist.barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Have gloo and NCCL bind to the loopback interface while a group is made."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    keys = {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} - os.environ.keys()
    added = {key: name for name in ("lo", "lo0") if name in names for key in keys}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _has_group() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _has_group() else 1


def load_state_dict(path: str, **kwargs: Any) -> Any:
    """Load what ``torch.save`` wrote, through blobfile, without executing any code in it.

    :param kwargs: for ``torch.load``, such as ``map_location``.
    :raises InputError: if there is no such file, its bytes are not those that were written, or it
        holds more than tensors and plain values.
    """
    content, failure = None, None
    start = opener(path)
    with start() as file, start() as same, ThreadPoolExecutor(1) as checker:
        damage = checker.submit(find_damage, same)  # costs nothing where a core is free
        try:
            content = th.load(file, **{**kwargs, "weights_only": True})
        except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
            failure = error
    if damage.result():
        raise InputError(
            f"{path} is no whole checkpoint ({damage.result()}); give another, or copy it anew"
        ) from failure
    if failure:
        said = str(failure).strip().splitlines() or [type(failure).__name__]
        raise InputError(
            f"{path} is no checkpoint that can be loaded safely ({said[0][:200]}); "
            "give a .pt file that holds tensors and plain values only"
        ) from failure
    return content


def sync_params(params: Iterable[th.Tensor]) -> None:
    """Give all ranks rank 0's values, in place."""
    if world_size() == 1:
        return
    for param in params:
        with th.no_grad():
            dist.broadcast(param, 0)


def all_gather(value: T) -> list[T]:
    """The ranks' values, of anything that can be pickled, in the order of the ranks."""
    values: list[Any] = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def any_rank(number: int) -> int:
    """The largest of the ranks' numbers: 0 only where all are."""
    if world_size() == 1:
        return number
    largest = th.tensor([number], device=dev())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


@contextlib.contextmanager
def agreeing() -> Iterator[None]:
    """Run a block that may fail on one rank alone; then it fails on all, with one error.

    Without that the others would go on to the next collective and wait there. A collective in the
    block must come before what may fail.

    :raises InputError, OSError: that of the first rank that failed.
    """
    failure: Exception | None = None
    try:
        yield
    except (InputError, OSError) as error:
        failure = error
    if not any_rank(int(failure is not None)):
        return
    raise of_all_ranks(next(filter(None, all_gather(failure))))


def by_rank_0(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank.

    :raises InputError, OSError: on every rank, if it cannot be made.
    """
    made: Any = None
    with agreeing():
        if rank() == 0:
            made = make()
    return all_gather(made)[0]


def of_all_ranks(error: Exception) -> Exception:
    """What each rank raises where all do: rank 0 tells ``error``, and the others wait for that."""
    global _leaving_together
    _leaving_together = world_size() > 1
    errors.told_by_rank_0 = rank() > 0
    return error


def is_of_a_lost_rank(error: RuntimeError) -> bool:
    """Whether an error of a collective means that another rank, or the launcher, is gone."""
    said = str(error).lower()
    return world_size() > 1 and any(word in said for word in ("gloo", "connection", "nccl"))


def mean_over_ranks(values: th.Tensor) -> th.Tensor:
    """The mean of the ranks' tensors."""
    if world_size() > 1:
        values = values / world_size()
        dist.all_reduce(values)
    return values


class RankAverager:
    """Averages a log line over the ranks; ``comm`` of a logger."""

    def weighted_mean(self, values: dict[str, tuple[float, int]]) -> dict[str, float]:
        """The mean of each key's ``(mean, count)`` pairs, weighted by count, on every rank.

        A key that only some ranks have, such as the loss of a quarter of the timesteps, is the
        mean over those.
        """
        lines = all_gather(values)
        means = {}
        for key in sorted({key for line in lines for key in line}):
            pairs = [line[key] for line in lines if key in line]
            total = sum(count for _, count in pairs)
            means[key] = sum(mean * count for mean, count in pairs) / total
        return means
