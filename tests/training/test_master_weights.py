"""The few tensors that hold a model's weights, and the copy of the model that computes."""

import copy

import pytest
import torch as th
from torch import nn

from improved_diffusion.errors import InputError
from improved_diffusion.training import master_weights
from improved_diffusion.training.master_weights import MasterWeights
from improved_diffusion.unet import UNetModel

HALF = th.bfloat16


class Mixed(nn.Module):
    """A convolution and a linear layer, a norm, a parameter of its own and a frozen one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.gain = nn.Parameter(th.tensor(1.5))
        self.frozen = nn.Parameter(th.ones(3), requires_grad=False)
        self.out = nn.Linear(4, 2)
        self.register_buffer("calls", th.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.out(self.norm(self.conv(x)).mean((2, 3)) * self.gain)


@pytest.fixture(autouse=True, params=[master_weights.LENGTH, 30])
def length(request, monkeypatch):
    """All weights in one tensor, and in several."""
    monkeypatch.setattr(master_weights, "LENGTH", request.param)


@pytest.fixture
def model():
    th.manual_seed(0)
    return Mixed()


def loss_of(module, x):
    with th.autocast("cpu", dtype=HALF):
        out = module(x)
    return (out.float() ** 2).sum()


def test_the_models_parameters_are_views_of_few_tensors(model):
    before = copy.deepcopy(model.state_dict())
    weights = MasterWeights(model, th.float32)
    assert all(th.equal(v, before[k]) for k, v in model.state_dict().items())
    assert sum(map(len, weights.tensors)) == sum(p.numel() for p in weights.trained)
    with th.no_grad():
        for tensor in weights.tensors:
            tensor.mul_(2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, p in model.named_parameters():
        assert th.equal(p, before[name] * (2 if name in trained else 1))


def test_in_float32_the_model_itself_computes(model):
    assert MasterWeights(model, th.float32).working is model


def test_the_copy_holds_the_weights_of_its_products_in_half_precision(model):
    working = MasterWeights(model, HALF).working
    dtypes = {name: p.dtype for name, p in working.named_parameters()}
    in_half = {name for name, dtype in dtypes.items() if dtype == HALF}
    assert in_half == {"conv.weight", "conv.bias", "out.weight", "out.bias"}
    assert working.gain is model.gain
    assert working.calls is model.calls
    assert all(p.dtype == th.float32 for p in model.parameters())


def test_what_something_else_holds_too_is_not_cast():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(5, 3)
            self.out = nn.Linear(3, 5)
            self.out.weight = self.words.weight

    model = Tied()
    working = MasterWeights(model, HALF).working
    assert working.out.weight is working.words.weight is model.words.weight
    assert working.out.bias.dtype == HALF


def test_gradients_are_those_of_autocast_to_the_bit(model):
    x = th.randn(3, 2, 4, 4)
    plain = copy.deepcopy(model)
    for _ in range(2):
        loss_of(plain, x).backward()
    weights = MasterWeights(model, HALF)
    for _ in range(2):
        loss_of(weights.working, x).backward()
        weights.gather()
    grads = dict(zip(weights.trained, weights.views(weights.grads), strict=True))
    for p, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        assert (p in grads) == p.requires_grad
        assert not p.requires_grad or th.equal(grads[p], wanted.grad)
        assert p.grad is None
    assert all(p.grad is None for p in weights.working.parameters())


@pytest.mark.parametrize("scale_shift", [False, True])
def test_the_unet_computes_with_them_as_under_autocast(scale_shift):
    th.manual_seed(1)
    model = UNetModel(3, 32, 3, 1, (2,), channel_mult=(1, 2), use_scale_shift_norm=scale_shift)
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    x, t = th.randn(2, 3, 8, 8), th.tensor([3, 700])
    with th.autocast("cpu", dtype=HALF):
        wanted = model(x, t)
        got = MasterWeights(model, HALF).working(x, t)
    assert th.equal(got, wanted)


def test_refresh_takes_over_what_the_optimizer_did(model):
    weights = MasterWeights(model, HALF)
    with th.no_grad():
        for tensor in weights.tensors:
            tensor.add_(1)
    assert not th.equal(weights.working.conv.weight, model.conv.weight.to(HALF))
    weights.refresh()
    assert th.equal(weights.working.conv.weight, model.conv.weight.to(HALF))
    assert th.equal(weights.working.out.bias, model.out.bias.to(HALF))


def test_a_parameter_without_a_gradient_counts_as_one_of_zeros(model):
    weights = MasterWeights(model, th.float32)
    model.out(th.ones(1, 4)).sum().backward()
    weights.gather()
    grads = dict(zip(weights.trained, weights.views(weights.grads), strict=True))
    assert th.equal(grads[model.out.bias], th.ones(2))
    assert not grads[model.conv.weight].any()


def test_the_norm_of_a_long_gradient_is_exact():
    weights = MasterWeights(nn.Linear(3000, 1001), th.float32)
    for tensor in weights.tensors:
        tensor.grad = th.randn(len(tensor)) * 1e-3
    exact = th.cat(weights.grads).double().norm().item()
    assert weights.grad_norm() == pytest.approx(exact, rel=1e-6)


def adamw_pair(model):
    """The optimizer of the few tensors, and PyTorch's own of the parameters of an equal model."""
    plain = copy.deepcopy(model)
    weights = MasterWeights(model, th.float32)
    own = weights.optimizer("adamw", lr=0.01, weight_decay=0.1)
    return weights, own, plain, th.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1)


def make_steps(steps, weights, own, plain, stock):
    for _ in range(steps):
        x = th.randn(3, 2, 4, 4)
        own.zero_grad()
        stock.zero_grad()
        weights.working(x).square().sum().backward()
        weights.gather()
        own.step()
        plain(x).square().sum().backward()
        stock.step()


def assert_same_state(mine, theirs):
    assert mine["param_groups"] == theirs["param_groups"]
    assert mine["state"].keys() == theirs["state"].keys()
    for number, moments in theirs["state"].items():
        assert mine["state"][number].keys() == moments.keys()
        for key, value in moments.items():
            th.testing.assert_close(mine["state"][number][key], value)


def test_its_optimizer_moves_and_saves_as_one_of_the_parameters(model):
    pair = adamw_pair(model)
    _, own, plain, stock = pair
    assert_same_state(own.state_dict(), stock.state_dict())
    make_steps(3, *pair)
    for p, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        th.testing.assert_close(p, wanted)
    assert_same_state(own.state_dict(), stock.state_dict())
    steps = [moments["step"] for moments in own.state_dict()["state"].values()]
    assert len({step.data_ptr() for step in steps}) == len(steps)  # each can be counted up alone


@pytest.mark.parametrize("there", ["own", "stock"])
def test_its_optimizer_goes_on_from_either(there, model, tmp_path):
    pair = adamw_pair(model)
    make_steps(2, *pair)
    weights, own, plain, stock = pair
    th.save((own if there == "own" else stock).state_dict(), tmp_path / "opt.pt")
    state = th.load(tmp_path / "opt.pt", weights_only=True)
    again = weights.optimizer("adamw", lr=0.01, weight_decay=0.1)
    again.load_state_dict(state)
    fresh = th.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1)
    fresh.load_state_dict(state)
    make_steps(2, weights, again, plain, fresh)
    for p, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        th.testing.assert_close(p, wanted)


def test_moments_that_a_file_lacks_start_at_zero(model):
    weights, opt, *others = adamw_pair(model)
    make_steps(1, weights, opt, *others)
    state = opt.state_dict()
    del state["state"][0]
    opt.load_state_dict(state)
    kept = opt.state_dict()["state"]
    first, others = kept.pop(0), list(kept.values())
    assert not first["exp_avg"].any()
    assert all(moments["exp_avg_sq"].any() for moments in others)


def test_copies_for_averages_have_the_models_shapes(model):
    weights = MasterWeights(model, HALF)
    copies = weights.copies()
    shaped = weights.by_param(copies)
    assert all(th.equal(a, p) for a, p in zip(shaped, model.parameters(), strict=True))
    for copied in copies:
        copied.zero_()
    for a, p in zip(shaped, model.parameters(), strict=True):
        assert not p.requires_grad or not a.any()
    assert model.conv.weight.any()


def test_weights_of_several_types_are_refused(model):
    model.out.half()
    with pytest.raises(InputError, match=r"of several types .*float16.*make all of them float32"):
        MasterWeights(model, th.float32)


def test_a_model_without_anything_to_train_is_refused(model):
    with pytest.raises(InputError, match="no parameter to train"):
        MasterWeights(model.requires_grad_(False), th.float32)


def with_steps_as_numbers(state):
    """As old files have them."""
    moments = {number: {**moments, "step": 1} for number, moments in state["state"].items()}
    return {**state, "state": moments}


def numbered_otherwise(state):
    groups = [
        {**group, "params": [number + 100 for number in group["params"]]}
        for group in state["param_groups"]
    ]
    moments = {number + 100: moments for number, moments in state["state"].items()}
    return {"state": moments, "param_groups": groups}


@pytest.mark.parametrize("change", [with_steps_as_numbers, numbered_otherwise])
def test_files_of_other_forms_say_the_same(change, model):
    weights, opt, *others = adamw_pair(model)
    make_steps(1, weights, opt, *others)
    wanted = opt.state_dict()
    again = weights.optimizer("adamw", lr=0.01, weight_decay=0.1)
    again.load_state_dict(change(wanted))
    assert_same_state(again.state_dict(), wanted)
