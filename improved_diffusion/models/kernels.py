"""Kernels that compute what the reference's layers do, in less time.

In float32 they give its numbers; in half precision they save passes and operations.
"""

from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.conv import _ConvNd

from ..nn import GroupNorm32, by_dimension, widened

HALF = (th.bfloat16, th.float16)
# Which of a kernel's 3 rows act in each of the 4 rows of the transposed kernel.
DOUBLED_TAPS = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))


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
    rows, weight, bias = widened(x.contiguous(), norm.weight, norm.bias)
    in_steps = x.dtype == weight.dtype
    h = _NormSiLU.apply(rows, weight, bias, scale, shift, norm.num_groups, norm.eps, in_steps)
    return h.to(x.dtype)


class _NormSiLU(th.autograd.Function):
    """silu of a norm, modulated or not, whose backward pass keeps no more than x and that norm.

    norm(x) gain + shift takes no pass over x of its own: a batch is one image of N C channels to a
    norm, as groups of different images never mix, so each image can have a weight and a bias of its
    own. With ``in_steps``, for float32, the forward pass takes one all the same, and so rounds as
    the reference does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: th.Tensor,
        weight: th.Tensor,
        bias: th.Tensor,
        scale: th.Tensor | None,
        shift: th.Tensor | None,
        groups: int,
        eps: float,
        in_steps: bool,
    ) -> th.Tensor:
        gain = None
        if scale is None or shift is None:
            h, mean, rstd = _group_norm(x, weight, bias, groups, eps)
        else:
            gain, shift = 1 + scale.to(weight.dtype), shift.to(weight.dtype)
            if in_steps:
                h, mean, rstd = _group_norm(x, weight, bias, groups, eps)
                each = (*gain.shape, *[1] * (x.ndim - 2))
                h = h.mul_(gain.view(each)).add_(shift.view(each))
            else:
                folded = gain * weight, th.addcmul(shift, gain, bias)
                h, mean, rstd = _group_norm(x, *folded, groups, eps)
        ctx.save_for_backward(x, h, mean, rstd, weight, bias, gain)
        ctx.groups, ctx.modulation = groups, None if scale is None else scale.dtype
        return h * th.sigmoid(h) if h.dtype == th.float32 else F.silu(h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, ...]:
        x, h, mean, rstd, weight, bias, gain = ctx.saved_tensors
        dh = th.ops.aten.silu_backward(grad.contiguous(), h)
        folded = weight if gain is None else gain * weight
        shape = _norm_shape(x, folded, ctx.groups)
        stats = mean.view(shape[0], -1), rstd.view(shape[0], -1)
        dx, dweight, dbias = th.ops.aten.native_group_norm_backward(
            dh.view(shape[:3]), x.view(shape[:3]), *stats, folded.flatten(), *shape, [True] * 3
        )
        dscale = dshift = None
        if gain is not None:
            dfolded, dshift = dweight.view_as(gain), dbias.view_as(gain)
            dscale = (dfolded * weight + dshift * bias).to(ctx.modulation)
            dweight, dbias = (dfolded * gain).sum(0), (dshift * gain).sum(0)
            dshift = dshift.to(ctx.modulation)
        return dx.view_as(x), dweight, dbias, dscale, dshift, None, None, None


def _group_norm(
    x: th.Tensor, weight: th.Tensor, bias: th.Tensor, groups: int, eps: float
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """A norm with ``weight`` [C] or [N, C]; its mean and reciprocal deviation of each group."""
    shape = _norm_shape(x, weight, groups)
    rows = x.view(shape[:3])
    h, mean, rstd = th.native_group_norm(rows, weight.flatten(), bias.flatten(), *shape, eps)
    return h.view_as(x), mean, rstd


def _norm_shape(x: th.Tensor, weight: th.Tensor, groups: int) -> tuple[int, int, int, int]:
    """Images, channels, positions and groups of a group norm with ``weight`` [C] or [N, C]."""
    n, c = x.shape[:2]
    positions = x.numel() // (n * c)
    return (n, c, positions, groups) if weight.ndim == 1 else (1, n * c, positions, n * groups)


def _dtype_of_products(x: th.Tensor) -> th.dtype:
    """What convolutions and products of ``x`` compute in, here and now."""
    device = x.device.type
    return th.get_autocast_dtype(device) if th.is_autocast_enabled(device) else x.dtype


class _Pointwise(_ConvNd):
    """A convolution of kernel size 1 that is a batched matrix product in half precision.

    In bfloat16 a product took half the time of the convolution (8 images, 128 to 64 channels,
    32x32, forward and backward: 0.7 against 1.35 ms); in float32 a quarter more.
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        dtype = _dtype_of_products(x)
        if dtype not in HALF:
            return super().forward(x)
        assert self.bias is not None
        weight, bias = self.weight.to(dtype).flatten(1), self.bias.to(dtype)
        h = _PointwiseProduct.apply(x.to(dtype).flatten(2), weight, bias)
        return h.view(*h.shape[:2], *x.shape[2:])


class _PointwiseProduct(th.autograd.Function):
    """weight x + bias for each image, with no more copies than the products need.

    Autograd would transpose as many copies of the weight as there are images, and sum the bias's
    gradient in one pass over two dimensions, which takes five times as long as one after the other.
    """

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x, weight)
        return th.baddbmm(bias[:, None], weight.expand(len(x), -1, -1), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, ...]:
        x, weight = ctx.saved_tensors
        weights = weight.expand(len(x), -1, -1).contiguous()  # copied row by row, transposed in use
        dweight = (grad @ x.mT).sum(0, dtype=th.float32).to(weight.dtype)  # faster, the same bits
        return weights.mT @ grad, dweight, grad.sum(2).sum(0)


class _Pointwise1d(_Pointwise, nn.Conv1d): ...


class _Pointwise2d(_Pointwise, nn.Conv2d): ...


class _Pointwise3d(_Pointwise, nn.Conv3d): ...


def pointwise_nd(dims: int, channels: int, out_channels: int) -> nn.Module:
    """Make a convolution of kernel size 1 over ``dims`` (1, 2 or 3) spatial dimensions."""
    return by_dimension(dims, _Pointwise1d, _Pointwise2d, _Pointwise3d)(channels, out_channels, 1)


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
    h = F.conv_transpose2d(x, weight, stride=2, padding=1)
    # The bias by itself: oneDNN sums its gradient element by element.
    return h if conv.bias is None else h + conv.bias.to(h.dtype)[:, None, None]


class Attention(th.autograd.Function):
    """Queries, keys and values [B, 3C, T] to [B, C, T], as :class:`~.unet.QKVAttention`.

    For half precision on a CPU: its products take contiguous factors, of which autograd would copy
    most, and the gradient comes in one piece.
    """

    @staticmethod
    def forward(ctx: Any, qkv: th.Tensor) -> th.Tensor:
        b, channels, t = qkv.shape
        parts = qkv.reshape(b, 3, channels // 3, t).transpose(0, 1)
        # A copy even where nothing needs to move: the queries are scaled in place.
        q, k, v = parts.clone(memory_format=th.contiguous_format).unbind(0)
        q.mul_(q.shape[1] ** -0.5)  # first: float16 overflows
        weight = th.softmax(th.bmm(q.mT, k), dim=-1)  # [B, T, T]
        ctx.save_for_backward(q, k, v, weight)
        return th.bmm(v, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: th.Tensor) -> th.Tensor:
        q, k, v, weight = ctx.saved_tensors
        dweight = th.bmm(grad.mT, v)
        dlogits = th.ops.aten._softmax_backward_data(dweight, weight, -1, weight.dtype)
        dq = th.bmm(k, dlogits.mT).mul_(q.shape[1] ** -0.5)
        return th.cat([dq, th.bmm(q, dlogits), th.bmm(grad, weight)], dim=1)
