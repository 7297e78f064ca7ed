"""Layers and tensor helpers that every model of the package is made of."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch as th
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from .errors import InputError

NORM_GROUPS = 32
NO_LABEL = -1  # the label of an image whose class a model is not told

Module = TypeVar("Module", bound=nn.Module)


class SiLU(nn.Module):
    """x sigmoid(x), in float32 rounded as the reference rounds it."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x * th.sigmoid(x) if x.dtype == th.float32 else F.silu(x)


class GroupNorm32(nn.GroupNorm):
    """Group norm that computes in float32 (or wider) and returns the dtype of its input."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        rows, weight, bias = widened(x, self.weight, self.bias)
        return F.group_norm(rows, self.num_groups, weight, bias, self.eps).to(x.dtype)


def widened(
    x: th.Tensor, weight: th.Tensor, bias: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """What a group norm is given so that it computes in float32 (or wider)."""
    dtype = th.promote_types(x.dtype, th.float32)
    # The CPU's kernel takes half input with float32 weights, and computes in float32.
    return x if x.device.type == "cpu" else x.to(dtype), weight.to(dtype), bias.to(dtype)


def normalization(channels: int) -> GroupNorm32:
    """Make the norm of every block: ``channels`` in 32 groups.

    :raises InputError: if 32 does not divide ``channels``.
    """
    if channels % NORM_GROUPS:
        raise InputError(
            f"{channels} channels do not split into the {NORM_GROUPS} groups of the group norm: "
            f"choose a multiple of {NORM_GROUPS}"
        )
    return GroupNorm32(NORM_GROUPS, channels)


def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Make a convolution over ``dims`` spatial dimensions; see :func:`by_dimension`."""
    return by_dimension(dims, nn.Conv1d, nn.Conv2d, nn.Conv3d)(*args, **kwargs)


def avg_pool_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Make an average pooling over ``dims`` spatial dimensions; see :func:`by_dimension`."""
    return by_dimension(dims, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)(*args, **kwargs)


def by_dimension(dims: int, *classes: type[nn.Module]) -> type[nn.Module]:
    """The layer's class for ``dims`` spatial dimensions.

    :raises InputError: if ``dims`` is not 1, 2 or 3.
    """
    if dims not in (1, 2, 3):
        raise InputError(f"dims={dims!r} is not a number of spatial dimensions: choose 1, 2 or 3")
    return classes[dims - 1]


def linear(*args: Any, **kwargs: Any) -> nn.Linear:
    """Make a linear layer."""
    return nn.Linear(*args, **kwargs)


@th.no_grad()
def update_ema(
    target_params: Iterable[th.Tensor],
    source_params: Iterable[th.Tensor],
    rate: float = 0.99,
) -> None:
    """Move ``target_params`` towards ``source_params`` in place: t <- rate t + (1 - rate) s.

    Each keeps its dtype: float32 averages of bfloat16 weights, for example.
    """
    if target := list(target_params):
        source = [s.to(t.dtype) for t, s in zip(target, source_params, strict=True)]
        th._foreach_lerp_(target, source, 1 - rate)


@th.no_grad()
def zero_module(module: Module) -> Module:
    """Set every parameter of ``module`` to zero and return it."""
    for p in module.parameters():
        p.zero_()
    return module


@th.no_grad()
def scale_module(module: Module, scale: float) -> Module:
    """Multiply every parameter of ``module`` by ``scale`` and return it."""
    for p in module.parameters():
        p.mul_(scale)
    return module


def mean_flat(tensor: th.Tensor) -> th.Tensor:
    """Take the mean over all dimensions but the first: [N, C, ...] -> [N]."""
    return tensor.mean(dim=list(range(1, tensor.ndim)))


def timestep_embedding(timesteps: th.Tensor, dim: int, max_period: float = 10000) -> th.Tensor:
    """Embed timesteps as cosines and sines of falling frequency (Vaswani et al. 2017, 3.5).

    :param timesteps: [N], may be fractional.
    :param dim: width of the embedding; an odd one ends with a zero.
    :param max_period: 2 pi times this is (nearly) the longest period, in timesteps.
    :return: [N, dim], float32, the cosines first.
    """
    half = dim // 2
    steps = th.arange(half, dtype=th.float32, device=timesteps.device)
    frequencies = th.exp(-math.log(max_period) * steps / half)
    angles = timesteps[:, None].float() * frequencies[None]
    return F.pad(th.cat([th.cos(angles), th.sin(angles)], dim=-1), (0, dim % 2))


def checkpoint(
    func: Callable[..., th.Tensor],
    inputs: Sequence[Any],
    params: Iterable[th.Tensor],
    flag: bool,
) -> th.Tensor:
    """Compute ``func(*inputs)``; with ``flag``, forget what happens inside and redo it in backward.

    Gradients are the same bits either way, dropout included. ``params``, which ``func`` uses,
    stays in the signature for its callers: autograd finds them by itself.
    """
    if flag and th.is_grad_enabled():
        return recompute(func, *inputs, use_reentrant=False)
    return func(*inputs)
