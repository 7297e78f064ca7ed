"""Muon: what it does to matrices, and that everything else is AdamW's."""

import copy
import math

import pytest
import torch as th
from torch import nn

from improved_diffusion.training.master_weights import MasterWeights
from improved_diffusion.training.muon import orthogonalised

SETTINGS = {"lr": 0.01, "betas": (0.95, 0.999), "weight_decay": 0.1}


@pytest.fixture
def model():
    th.manual_seed(0)
    conv, linear = nn.Conv2d(33, 40, 3, padding=1), nn.Linear(40, 40)
    return nn.Sequential(conv, nn.GroupNorm(4, 40), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (64, 64)])
def test_singular_values_become_alike_and_directions_stay(shape):
    th.manual_seed(0)
    matrix = th.randn(shape) * th.logspace(0, -2, shape[1])
    u, _, v = th.linalg.svd(matrix, full_matrices=False)
    values = u.T @ orthogonalised(matrix) @ v.T
    rest = values - values.diag().diag()
    assert rest.abs().max() < 1e-3
    large = values.diag()[: min(shape) // 2]
    assert large.min() > 0.6
    assert values.diag().max() < 1.3


def test_nothing_comes_of_nothing():
    assert not orthogonalised(th.zeros(40, 50)).any()


def make_steps(numbers, weights, opt):
    """One step for each number, which chooses the images."""
    for number in numbers:
        images = th.randn(2, 33, 6, 6, generator=th.Generator().manual_seed(number))
        weights.zero_grad()
        weights.refresh()
        with th.autocast("cpu", th.bfloat16, enabled=weights.dtype == th.bfloat16):
            weights.working(images).square().sum().backward()
        weights.gather()
        opt.step()


def test_only_wide_convolutions_are_its_own(model):
    """All others move as AdamW moves them, and the moments of all are AdamW's."""
    model = nn.Sequential(model, nn.Unflatten(1, (40, 1)), nn.Conv1d(40, 5, 1))
    plain = copy.deepcopy(model)
    for one, name in ((model, "muon"), (plain, "adamw")):
        weights = MasterWeights(one, th.float32)
        opt = weights.optimizer(name, **SETTINGS)
        make_steps([0], weights, opt)
        one.state = opt.state_dict()
    alike = {
        name
        for (name, p), other in zip(model.named_parameters(), plain.parameters(), strict=True)
        if th.equal(p, other)
    }
    assert alike == {name for name, _ in model.named_parameters()} - {"0.0.weight"}
    for number, moments in plain.state["state"].items():
        assert all(th.equal(model.state["state"][number][key], moments[key]) for key in moments)


def test_a_step_is_the_published_one(model):
    before = model[0].weight.detach().clone()
    weights = MasterWeights(model, th.float32)
    opt = weights.optimizer("muon", **SETTINGS)
    momentum = th.zeros_like(before)
    for number in range(3):
        make_steps([number], weights, opt)
        grads = dict(zip(weights.trained, weights.views(weights.grads), strict=True))
        grad = grads[model[0].weight]
        momentum = 0.95 * momentum + grad
        ahead = orthogonalised((grad + 0.95 * momentum).flatten(1)).view_as(before)
        size = 0.01 * 0.2 * math.sqrt(33 * 9)
        before = before * (1 - 0.01 * 0.1) - size * ahead
        th.testing.assert_close(model[0].weight.detach(), before, rtol=0, atol=3e-5)


def test_frozen_layers_stay_and_attentions_count(model):
    model[0].bias.requires_grad_(False)
    model[4] = nn.Sequential(nn.Unflatten(1, (40, 1)), nn.Conv1d(40, 120, 1), nn.Flatten())
    frozen, weight = model[0].bias.clone(), model[4][1].weight
    before = weight.detach().clone()
    weights = MasterWeights(model, th.float32)
    make_steps([0], weights, weights.optimizer("muon", **SETTINGS | {"weight_decay": 0.0}))
    assert th.equal(model[0].bias, frozen)
    moved = th.linalg.svdvals((weight.detach() - before).flatten(1))
    size = 0.01 * 0.2 * math.sqrt(120)
    assert 0.6 < moved[1] / size < moved[0] / size < 1.3  # two images: a gradient of rank two
    assert moved[2] < 1e-3 * size


def test_it_is_the_published_iteration_whatever_the_gradient():
    th.manual_seed(0)
    noise, few = th.randn(64, 300), th.randn(64, 3) @ th.randn(3, 300)
    for matrix in (noise, noise.T, noise * 1e-6, noise[:, :64], few + 1e-5 * noise):
        x = matrix.double() / (matrix.double().norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        difference = orthogonalised(matrix) - x
        assert difference.norm() < 3e-4 * x.norm()


@pytest.mark.parametrize("dtype", [th.float32, th.bfloat16])
def test_it_goes_on_to_the_bit(dtype, model, tmp_path):
    whole = copy.deepcopy(model)
    weights = MasterWeights(whole, dtype)
    make_steps(range(4), weights, weights.optimizer("muon", **SETTINGS))
    for numbers in (range(2), range(2, 4)):
        weights = MasterWeights(model, dtype)
        opt = weights.optimizer("muon", **SETTINGS)
        if numbers.start:
            opt.load_state_dict(th.load(tmp_path / "opt.pt", weights_only=True))
        make_steps(numbers, weights, opt)
        th.save(opt.state_dict(), tmp_path / "opt.pt")
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    assert all(th.equal(p, wanted) for p, wanted in pairs)


def test_a_run_of_adamw_goes_on_with_it_and_back(model):
    weights = MasterWeights(model, th.float32)
    state = None
    for number, name in enumerate(("adamw", "muon", "adamw")):
        opt = weights.optimizer(name, **SETTINGS)
        if state:
            opt.load_state_dict(state)
            loaded = opt.state_dict()["state"]
            for number_of, moments in state["state"].items():
                assert all(th.equal(loaded[number_of][key], moments[key]) for key in moments)
        make_steps([number], weights, opt)
        state = opt.state_dict()
    assert all(moments["step"] == 3 for moments in state["state"].values())
