"""Layers and tensor helpers that every model of the package is made of."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch as th
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint as recompute

from .errors import InputError

NORM_GROUPS = 32
HALF = (th.bfloat16, th.float16)
# Which of a kernel's 3 rows act in each of the 4 rows of the transposed kernel.
DOUBLED_TAPS = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))

Module = TypeVar("Module", bound=nn.Module)


class SiLU(nn.Module):
    """x sigmoid(x), in float32 rounded as the reference rounds it."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x * th.sigmoid(x) if x.dtype == th.float32 else F.silu(x)


class GroupNorm32(nn.GroupNorm):
    """Group norm that computes in float32 (or wider) and returns the dtype of its input."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        rows, weight, bias = _widened(x, self.weight, self.bias)
        return F.group_norm(rows, self.num_groups, weight, bias, self.eps).to(x.dtype)


def norm_silu(
    norm: GroupNorm32,
    x: th.Tensor,
    scale: th.Tensor | None = None,
    shift: th.Tensor | None = None,
) -> th.Tensor:
    """Compute silu(norm(x)), or silu(norm(x) (1 + scale) + shift), in one differentiable step.

    :param x: [N, C, ...].
    :param scale: [N, C], given together with ``shift`` or not at all.
    """
    rows, weight, bias = _widened(x.contiguous(), norm.weight, norm.bias)
    steps = ()
    if scale is not None:
        gain = 1 + scale.to(weight.dtype)
        if x.dtype == weight.dtype:
            steps = weight, bias, gain, shift
        weight, bias = fold_modulation(weight, bias, gain, shift)
    return _NormSiLU.apply(rows, weight, bias, steps, norm.num_groups, norm.eps).to(x.dtype)


def modulated_norm_silu(
    norm: GroupNorm32, x: th.Tensor, weight: th.Tensor, bias: th.Tensor
) -> th.Tensor:
    """The same, with what :func:`fold_modulation` made of scale and shift, [N, C] each."""
    rows, weight, bias = _widened(x.contiguous(), weight, bias)
    return _NormSiLU.apply(rows, weight, bias, (), norm.num_groups, norm.eps).to(x.dtype)


def fold_modulation(
    weight: th.Tensor, bias: th.Tensor, gain: th.Tensor, shift: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """Weight and bias of a norm that is modulated: those of norm(x) gain + shift.

    Groups of different images never mix, so a batch is one image of N C channels to a norm, each
    with a weight and a bias of its own: in these, the modulation costs no pass over x.
    """
    return gain * weight, th.addcmul(shift.to(weight.dtype), gain, bias)


def _widened(
    x: th.Tensor, weight: th.Tensor, bias: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """What a group norm is given so that it computes in float32 (or wider)."""
    dtype = th.promote_types(x.dtype, th.float32)
    # The CPU's kernel takes half input with float32 weights, and computes in float32.
    return x if x.device.type == "cpu" else x.to(dtype), weight.to(dtype), bias.to(dtype)


class _NormSiLU(th.autograd.Function):
    """silu(group norm) with two kernels backward, and no more kept than x and the norm.

    ``weight`` and ``bias`` are [C], or [N, C] for one of their own to each image. ``steps`` holds
    weight, bias, gain and shift for float32's forward pass, which goes step by step to be rounded
    as the reference rounds it; its backward pass goes through the folded ones too.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, steps, groups, eps):
        if steps:
            plain_weight, plain_bias, gain, shift = (v.detach() for v in steps)
            h, mean, rstd = _group_norm(x, plain_weight, plain_bias, groups, eps)
            each = (*gain.shape, *[1] * (x.ndim - 2))
            h = h.mul_(gain.view(each)).add_(shift.view(each))
        else:
            h, mean, rstd = _group_norm(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, h, mean, rstd, weight)
        ctx.groups = groups
        return h * th.sigmoid(h) if h.dtype == th.float32 else F.silu(h)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, h, mean, rstd, weight = ctx.saved_tensors
        dh = th.ops.aten.silu_backward(grad.contiguous(), h)
        shape = _norm_shape(x, weight, ctx.groups)
        stats = mean.view(shape[0], -1), rstd.view(shape[0], -1)
        dx, dweight, dbias = th.ops.aten.native_group_norm_backward(
            dh.view(shape[:3]), x.view(shape[:3]), *stats, weight.flatten(), *shape, [True] * 3
        )
        return dx.view_as(x), dweight.view_as(weight), dbias.view_as(weight), None, None, None


def _group_norm(x, weight, bias, groups, eps):
    shape = _norm_shape(x, weight, groups)
    rows = x.view(shape[:3])
    h, mean, rstd = th.native_group_norm(rows, weight.flatten(), bias.flatten(), *shape, eps)
    return h.view_as(x), mean, rstd


def _norm_shape(x, weight, groups):
    """Images, channels, positions and groups of a group norm with ``weight`` [C] or [N, C]."""
    n, c = x.shape[:2]
    positions = x.numel() // (n * c)
    return (n, c, positions, groups) if weight.ndim == 1 else (1, n * c, positions, n * groups)


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
    """Make a convolution over ``dims`` (1, 2 or 3) spatial dimensions."""
    return _by_dimension(dims, nn.Conv1d, nn.Conv2d, nn.Conv3d)(*args, **kwargs)


def _dtype_of_products(x: th.Tensor) -> th.dtype:
    """What convolutions and products of ``x`` compute in, here and now."""
    device = x.device.type
    return th.get_autocast_dtype(device) if th.is_autocast_enabled(device) else x.dtype


class _Pointwise:
    """A convolution of kernel size 1 that is a batched matrix product in half precision.

    In bfloat16 a product took half the time of the convolution (8 images, 128 to 64 channels,
    32x32, forward and backward: 0.7 against 1.35 ms); in float32 a quarter more.
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        dtype = _dtype_of_products(x)
        if dtype not in HALF:
            return super().forward(x)
        weight, bias = self.weight.to(dtype).flatten(1), self.bias.to(dtype)
        h = _PointwiseProduct.apply(x.to(dtype).flatten(2), weight, bias)
        return h.view(*h.shape[:2], *x.shape[2:])


class _PointwiseProduct(th.autograd.Function):
    """weight x + bias for each image, with no more copies than the products need.

    Autograd would transpose as many copies of the weight as there are images, and sum the bias's
    gradient in one pass over two dimensions, which takes five times as long as one after the other.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return th.baddbmm(bias[:, None], weight.expand(len(x), -1, -1), x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        weights = weight.expand(len(x), -1, -1).contiguous()  # copied row by row, transposed in use
        dweight = (grad @ x.mT).sum(0)
        return weights.mT @ grad, dweight, grad.sum(2).sum(0)


class _Pointwise1d(_Pointwise, nn.Conv1d): ...


class _Pointwise2d(_Pointwise, nn.Conv2d): ...


class _Pointwise3d(_Pointwise, nn.Conv3d): ...


def pointwise_nd(dims: int, channels: int, out_channels: int) -> nn.Module:
    """Make a convolution of kernel size 1 over ``dims`` (1, 2 or 3) spatial dimensions."""
    return _by_dimension(dims, _Pointwise1d, _Pointwise2d, _Pointwise3d)(channels, out_channels, 1)


def conv_of_doubled(conv: nn.Conv2d, x: th.Tensor) -> th.Tensor:
    """Convolve ``x`` [N, C, H, W] repeated to double height and width: 3x3, padding 1.

    In half precision on a CPU, and where it pays, ``x`` is not repeated: an output sees 2x2 pixels
    of ``x``, some through several taps of the kernel, whose weights add up to a transposed
    convolution of 4/9 of the operations (8 images, 128 channels, 16x16, bfloat16, forward and
    backward: 5.7 against 9.2 ms; below 1024 pixels in all it is no faster).
    """
    pixels = x.numel() // x.shape[1]
    if x.device.type != "cpu" or _dtype_of_products(x) not in HALF or pixels < 1024:
        return conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    return _transposed_of_doubled(conv, x)


def _transposed_of_doubled(conv: nn.Conv2d, x: th.Tensor) -> th.Tensor:
    rows = th.tensor(DOUBLED_TAPS, dtype=conv.weight.dtype)
    weight = conv.weight.flatten(2) @ th.kron(rows, rows).T  # [C_out, C_in, 16]
    weight = weight.unflatten(2, (4, 4)).transpose(0, 1)
    return F.conv_transpose2d(x, weight, conv.bias, stride=2, padding=1)


def avg_pool_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Make an average pooling over ``dims`` (1, 2 or 3) spatial dimensions."""
    return _by_dimension(dims, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)(*args, **kwargs)


def _by_dimension(dims: int, *classes: type[nn.Module]) -> type[nn.Module]:
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
    """Move ``target_params`` towards ``source_params`` in place: t <- rate t + (1 - rate) s."""
    th._foreach_lerp_(list(target_params), list(source_params), 1 - rate)


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
    """Take the mean over all dimensions but the first: [N, ...] -> [N]."""
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
    inputs: Sequence[th.Tensor],
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
