"""The layers against PyTorch's own, and the tensor helpers against their formulas."""

import math
from functools import partial

import pytest
import torch as th
import torch.nn.functional as F
from torch import nn

from improved_diffusion import nn as layers
from improved_diffusion.errors import InputError
from improved_diffusion.nn import (
    GroupNorm32,
    avg_pool_nd,
    checkpoint,
    conv_nd,
    conv_of_doubled,
    mean_flat,
    norm_silu,
    normalization,
    pointwise_nd,
    scale_module,
    timestep_embedding,
    update_ema,
    zero_module,
)
from improved_diffusion.system.precision import Precision

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


def test_normalization_has_32_groups(norm):
    assert isinstance(norm, GroupNorm32)
    x = th.randn(2, 64, 5) * 3 + 1
    grouped = x.view(2, 32, -1)
    want = (x - grouped.mean(-1).repeat_interleave(2, 1)[..., None]) / (
        grouped.var(-1, unbiased=False) + 1e-5
    ).sqrt().repeat_interleave(2, 1)[..., None]
    th.testing.assert_close(norm(x), want * norm.weight[:, None] + norm.bias[:, None])


@pytest.mark.parametrize("channels", [16, 33, 80])
def test_normalization_refuses_what_32_does_not_divide(channels):
    with pytest.raises(InputError, match=f"{channels} channels.*multiple of 32"):
        normalization(channels)


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


def test_gradients_of_the_modulated_norm():
    th.manual_seed(0)
    norm = normalization(32).double()
    x, scale, shift = th.randn(2, 32, 3), th.randn(2, 32), th.randn(2, 32)
    inputs = [v.double().requires_grad_() for v in (x, scale, shift)]
    parameters = [norm.weight, norm.bias]

    def of(x, scale, shift, *_):
        return norm_silu(norm, x, scale, shift)

    assert th.autograd.gradcheck(of, [*inputs, *parameters])
    assert th.autograd.gradcheck(lambda x, *_: norm_silu(norm, x), [inputs[0], *parameters])


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


@pytest.mark.parametrize("make", [conv_nd, avg_pool_nd])
def test_layers_have_one_to_three_dimensions(make):
    with pytest.raises(InputError, match="dims=4"):
        make(4, 1, 1, 1)


def test_update_ema():
    target, source = [th.tensor([1.0, 2.0])], [th.tensor([3.0, 0.0], requires_grad=True)]
    update_ema(target, source, rate=0.75)
    th.testing.assert_close(target[0], th.tensor([1.5, 1.5]))
    update_ema(target, source)
    th.testing.assert_close(target[0], th.tensor([1.515, 1.485]))


def test_zero_and_scale_module():
    layer = nn.Linear(2, 2)
    weight = layer.weight.clone()
    assert scale_module(layer, 3.0) is layer
    th.testing.assert_close(layer.weight, 3 * weight)
    assert not zero_module(layer).weight.any()


def test_mean_flat():
    x = th.arange(12.0).view(2, 3, 2)
    th.testing.assert_close(mean_flat(x), th.tensor([2.5, 8.5]))


@pytest.mark.parametrize("dim", [6, 7])
def test_timestep_embedding(dim):
    got = timestep_embedding(th.tensor([0.0, 2.5]), dim, max_period=100)
    assert got.shape == (2, dim)
    angles = [2.5 * 100 ** (-i / 3) for i in range(3)]
    want = [*map(math.cos, angles), *map(math.sin, angles), *[0.0] * (dim - 6)]
    th.testing.assert_close(got[1], th.tensor(want))
    th.testing.assert_close(got[0], th.tensor([1.0] * 3 + [0.0] * (dim - 3)))


def test_checkpoint_recomputes_and_keeps_the_bits():
    th.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), th.randn(8, 4, requires_grad=True)
    calls = []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for flag in (False, True):
        th.manual_seed(1)
        h = checkpoint(layer, (x,), layer.parameters(), flag)
        gradients.append(th.autograd.grad(h.square().sum(), (x, *layer.parameters())))
    assert len(calls) == 3
    assert all(map(th.equal, *gradients))


def test_a_convolution_of_a_doubled_image_does_not_need_it():
    """The transposed convolution is the same function, with the same gradients."""
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x = th.randn(2, 3, 4, 6, dtype=th.float64, requires_grad=True)
    outputs, grads = [], []
    for convolve in (layers._transposed_of_doubled, conv_of_doubled):
        outputs.append(convolve(conv, x))
        weights = th.linspace(-1, 1, outputs[-1].numel(), dtype=th.float64)
        loss = (outputs[-1].flatten() * weights).sum()
        grads.append(th.autograd.grad(loss, (x, conv.weight, conv.bias)))
    assert th.allclose(*outputs, atol=1e-12)
    for one, other in zip(*grads, strict=True):
        assert th.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "dtype", "transposed"), [(32, "bf16", 1), (16, "bf16", 0), (32, "fp32", 0)]
)
def test_images_are_not_doubled_where_it_pays(size, dtype, transposed, monkeypatch):
    calls = []
    original = layers._transposed_of_doubled
    monkeypatch.setattr(
        layers, "_transposed_of_doubled", lambda *args: calls.append(1) or original(*args)
    )
    conv, x = nn.Conv2d(32, 32, 3, padding=1), th.randn(1, 32, size, size)
    with Precision(dtype).autocast():
        y = conv_of_doubled(conv, x)
    assert len(calls) == transposed
    exact = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    assert th.allclose(y.float(), exact, atol=0.02 if dtype == "bf16" else 0)
