"""Ranks, devices and the few collectives that the project needs.

Every function also works where there is no process group: there is one rank then, and nothing is
sent anywhere.
"""

import atexit
import contextlib
import gc
import io
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch as th
import torch.distributed as dist

# Here, before any group exists: its functions take the group of the moment of their import for
# a default argument and would keep it, with its threads, until after Python has gone.
import torch.distributed.nn.functional

from .errors import InputError
from .system.files import read_file

GPUS_PER_NODE = 8  # the reference's name; where no launcher sets LOCAL_RANK
Error = TypeVar("Error", bound=Exception)
_leaving_together = False


def setup_dist() -> None:
    """Make the process group, unless there is one.

    Under ``torchrun`` (or anything else that sets RANK and WORLD_SIZE) it joins the others:
    NCCL on GPUs, gloo on CPUs. Launched alone it makes a group of one, which keeps its state in
    this process and talks over the loopback interface only.
    """
    if dist.is_initialized():
        return
    backend = "nccl" if th.cuda.is_available() else "gloo"
    if th.cuda.is_available():
        th.cuda.set_device(dev())
    atexit.register(_leave)
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        dist.init_process_group(backend, init_method="env://")
        return
    with _loopback_only():
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _leave() -> None:
    """End the group's threads, which may abort the process if they outlive Python."""
    gc.collect()  # a loop that is over but not collected holds the group too
    if dist.is_initialized():
        if _leaving_together:  # a launcher ends all when one has gone, before rank 0 has spoken
            with contextlib.suppress(RuntimeError):
                dist.barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Have gloo and NCCL bind to the loopback interface while a group is made."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    added = [
        key
        for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        if loopback and key not in os.environ
    ]
    os.environ.update(dict.fromkeys(added, loopback))
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def dev() -> th.device:
    """The device that this process computes on."""
    if th.cuda.is_available():
        default = rank() % min(GPUS_PER_NODE, th.cuda.device_count())
        return th.device("cuda", int(os.environ.get("LOCAL_RANK", default)))
    return th.device("cpu")


def load_state_dict(path: str, **kwargs: Any) -> Any:
    """Load what ``torch.save`` wrote, through blobfile, without executing any code in it.

    :param kwargs: for ``torch.load``, such as ``map_location``.
    :raises InputError: if there is no such file, or it holds more than tensors and plain values.
    """
    data = read_file(path)
    try:
        return th.load(io.BytesIO(data), **{**kwargs, "weights_only": True})
    except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path} is no checkpoint that can be loaded safely ({reason[:200]}); "
            "give a .pt file that holds tensors and plain values only"
        ) from error


def sync_params(params: Iterable[th.Tensor]) -> None:
    """Give all ranks rank 0's values, in place."""
    if world_size() == 1:
        return
    for param in params:
        with th.no_grad():
            dist.broadcast(param, 0)


def all_gather_1d(values: th.Tensor) -> th.Tensor:
    """The ranks' one-dimensional tensors behind each other, in the order of the ranks."""
    if world_size() == 1:
        return values
    counts = [th.zeros(1, dtype=th.int64, device=values.device) for _ in range(world_size())]
    dist.all_gather(counts, th.tensor([len(values)], device=values.device))
    sizes = [int(count) for count in counts]
    padded = values.new_zeros(max(sizes))
    padded[: len(values)] = values
    parts = [th.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return th.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def any_rank(number: int) -> int:
    """The largest of the ranks' numbers: 0 only where all are."""
    if world_size() == 1:
        return number
    largest = th.tensor([number], device=dev())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def from_rank_0(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


@contextlib.contextmanager
def agreeing() -> Iterator[None]:
    """Run a block that may fail on one rank alone; then it fails on all, with one error.

    Without that the others would go on to the next collective and wait there. A collective in the
    block must come before what may fail.

    :raises InputError, OSError: that of the first rank that failed.
    """
    failure = None
    try:
        yield
    except (InputError, OSError) as error:
        failure = error
    if not any_rank(int(failure is not None)):
        return
    failures = [failure] * world_size()
    if world_size() > 1:
        dist.all_gather_object(failures, failure)
    raise of_all_ranks(next(filter(None, failures)))


def of_all_ranks(error: Error) -> Error:
    """Mark an error that every rank raises: rank 0 says it, and the others wait for that."""
    global _leaving_together
    _leaving_together = world_size() > 1
    error.is_said_elsewhere = rank() > 0
    return error


def all_gather_cat(values: th.Tensor) -> th.Tensor:
    """The ranks' tensors, all of one shape, behind each other along the first dimension."""
    if world_size() == 1:
        return values
    parts = [th.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return th.cat(parts)


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
        lines: list[Any] = [None] * world_size()
        dist.all_gather_object(lines, values)
        means = {}
        for key in sorted({key for line in lines for key in line}):
            pairs = [line[key] for line in lines if key in line]
            total = sum(count for _, count in pairs)
            means[key] = sum(mean * (count / total) for mean, count in pairs)
        return means
