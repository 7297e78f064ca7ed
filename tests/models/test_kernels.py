"""The kernels against the formulas, in every precision."""

from functools import partial

import pytest
import torch as th
import torch.nn.functional as F
from torch import nn

from improved_diffusion.models import kernels
from improved_diffusion.models.kernels import conv_of_doubled, norm_silu, pointwise_nd
from improved_diffusion.nn import conv_nd, normalization

HALVES = [th.bfloat16, th.float16]


@pytest.fixture
def norm():
    th.manual_seed(0)
    norm = normalization(64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def modulated(norm, x, scale, shift):
    """What norm_silu computes, as the formula has it."""
    h = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    shape = (*scale.shape, *[1] * (x.ndim - 2))
    return F.silu(h * (1 + scale.view(shape)) + shift.view(shape))


@pytest.mark.parametrize("size", [(6,), (4, 3), (2, 3, 2)])
def test_scale_and_shift_follow_the_norm(norm, size):
    x, scale, shift = th.randn(3, 64, *size), th.randn(3, 64), th.randn(3, 64)
    th.testing.assert_close(
        norm_silu(norm, x, scale, shift), modulated(norm, x, scale, shift), rtol=1e-5, atol=1e-5
    )


def test_a_modulated_norm_takes_any_memory_layout(norm):
    x, scale, shift = th.randn(2, 64, 4, 4), th.randn(2, 64), th.randn(2, 64)
    inner = x.contiguous(memory_format=th.channels_last)
    th.testing.assert_close(norm_silu(norm, inner, scale, shift), norm_silu(norm, x, scale, shift))


@pytest.mark.parametrize("dtype", [th.float32, th.bfloat16])
def test_gradients_are_those_of_the_formula(norm, dtype):
    x, scale, shift = th.randn(3, 64, 5, 4), th.randn(3, 64), th.randn(3, 64)
    upstream = th.randn(3, 64, 5, 4)
    found = []
    for function in (
        lambda *a: norm_silu(norm, *(v.to(dtype) for v in a)),
        partial(modulated, norm),
    ):
        inputs = [v.clone().requires_grad_() for v in (x, scale, shift)]
        loss = (function(*inputs).float() * upstream).sum()
        found.append(th.autograd.grad(loss, [*inputs, norm.weight, norm.bias]))
    for ours, theirs in zip(*found, strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        assert error < (1e-5 if dtype == th.float32 else 0.02)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_norm_computes_in_float32_and_returns_its_inputs_dtype(norm, dtype):
    x, scale, shift = th.randn(2, 64, 4, 4) + 30, th.randn(2, 64), th.randn(2, 64)
    h = norm_silu(norm, x.to(dtype), scale, shift)
    assert h.dtype == dtype
    want = modulated(norm, x.to(dtype).float(), scale, shift)
    th.testing.assert_close(h.float(), want, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pointwise_is_a_convolution_in_every_precision(dims):
    th.manual_seed(0)
    layer = pointwise_nd(dims, 8, 6)
    x = th.randn(2, 8, *[4] * dims, requires_grad=True)
    want = conv_nd(dims, 8, 6, 1)
    want.load_state_dict(layer.state_dict())
    assert th.equal(layer(x), want(x))
    with th.autocast("cpu", dtype=th.bfloat16):
        h = layer(x)
    assert h.dtype == th.bfloat16
    th.testing.assert_close(h.float(), want(x), rtol=0.02, atol=0.02)
    variables = (x, layer.weight, layer.bias)
    gradients = th.autograd.grad(h.float().square().sum(), variables)
    variables = (x, want.weight, want.bias)
    wanted = th.autograd.grad(want(x).square().sum(), variables)
    for got, expected in zip(gradients, wanted, strict=True):
        assert (got - expected).norm() < 0.02 * expected.norm()


def test_a_convolution_of_a_doubled_image_does_not_need_it():
    """The transposed convolution is the same function, with the same gradients."""
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x = th.randn(2, 3, 4, 6, dtype=th.float64, requires_grad=True)
    outputs, grads = [], []
    for convolve in (kernels._transposed_of_doubled, conv_of_doubled):
        outputs.append(convolve(conv, x))
        weights = th.linspace(-1, 1, outputs[-1].numel(), dtype=th.float64)
        loss = (outputs[-1].flatten() * weights).sum()
        grads.append(th.autograd.grad(loss, (x, conv.weight, conv.bias)))
    assert th.allclose(*outputs, atol=1e-12)
    for one, other in zip(*grads, strict=True):
        assert th.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("size", [16, 32])  # below the pixels from which it pays, and above
def test_a_doubled_image_in_half_precision(size):
    conv, x = nn.Conv2d(32, 32, 3, padding=1), th.randn(1, 32, size, size)
    with th.autocast("cpu", dtype=th.bfloat16):
        y = conv_of_doubled(conv, x)
    assert y.dtype == th.bfloat16
    exact = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    assert (y - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(1, 24, 16), (3, 96, 64)])
def test_attention_in_half_precision(dtype, shape):
    th.manual_seed(0)
    qkv = th.randn(shape).to(dtype).requires_grad_()
    before, grad = qkv.detach().clone(), th.randn(shape[0], shape[1] // 3, shape[2]).to(dtype)
    got = kernels.Attention.apply(qkv)
    got.backward(grad)
    exact = before.float().requires_grad_()
    q, k, v = exact.chunk(3, dim=1)
    weight = th.softmax((q * q.shape[1] ** -0.5).mT @ k, dim=-1)
    wanted = (weight @ v.mT).mT
    wanted.backward(grad.float())
    assert got.dtype == qkv.grad.dtype == dtype
    tolerance = {th.bfloat16: 0.02, th.float16: 0.003}[dtype]
    for mine, exactly in ((got.detach(), wanted.detach()), (qkv.grad, exact.grad)):
        assert (mine.float() - exactly).norm() < tolerance * exactly.norm()
    assert th.equal(qkv.detach(), before)  # which are the layer's input, too
