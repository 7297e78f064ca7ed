"""The layers against PyTorch's own, and the tensor helpers against their formulas."""

import math

import pytest
import torch as th
from torch import nn

from improved_diffusion.errors import InputError
from improved_diffusion.nn import (
    GroupNorm32,
    avg_pool_nd,
    checkpoint,
    conv_nd,
    mean_flat,
    normalization,
    scale_module,
    timestep_embedding,
    update_ema,
    zero_module,
)


def test_normalization_has_32_groups():
    th.manual_seed(0)
    norm = normalization(64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
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
    update_ema([], [])


def test_an_average_keeps_its_dtype():
    target, source = th.ones(2), th.full((2,), 3.0, dtype=th.bfloat16)
    update_ema([target], [source], rate=0.75)
    assert target.tolist() == [1.5, 1.5]


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
