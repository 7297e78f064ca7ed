import contextlib
import math

import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.system import cpu
from improved_diffusion.system.precision import INITIAL_LG_LOSS_SCALE, Precision, check_precision


def grads(*values):
    return [th.tensor([float(value)]) for value in values]


def test_fp32_leaves_everything_alone():
    precision = Precision("fp32")
    gradients = grads(3, 4)
    with precision.autocast():
        assert (th.ones(2, 2) @ th.ones(2, 2)).dtype == th.float32
    assert precision.loss_scale == 1
    assert precision.accept(gradients, 5.0)
    assert [float(g) for g in gradients] == [3, 4]
    assert precision.loss_scale == 1


def test_bf16_computes_products_in_bf16_around_float32_weights():
    precision = Precision("bf16")
    layer = th.nn.Linear(4, 4)
    with precision.autocast():
        assert layer(th.ones(1, 4)).dtype == th.bfloat16
    assert layer.weight.dtype == th.float32
    assert precision.loss_scale == 1
    assert not precision.scales_loss


@pytest.mark.parametrize("norm", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_gradients_that_are_not_finite_are_not_accepted(name, norm):
    assert not Precision(name).accept(grads(1), norm)


def test_fp16_scales_the_loss_and_unscales_the_gradients():
    precision = Precision("fp16", "cuda", scale_growth=0.5)
    assert precision.lg_loss_scale == INITIAL_LG_LOSS_SCALE
    assert precision.loss_scale == 2.0**20
    gradients = grads(3 * 2.0**20, -4 * 2.0**20)
    assert precision.accept(gradients, 5 * 2.0**20)
    assert [float(g) for g in gradients] == [3, -4]
    assert precision.lg_loss_scale == 20.5


def test_an_overflow_halves_fp16s_scale_and_leaves_the_gradients():
    precision = Precision("fp16", "cuda")
    gradients = grads(math.inf)
    assert not precision.accept(gradients, math.inf)
    assert precision.loss_scale == 2.0**19
    assert math.isinf(gradients[0])


def test_the_scale_goes_on_after_saving():
    precision = Precision("fp16", "cuda")
    precision.accept(grads(1), math.nan)
    restored = Precision("fp16", "cuda")
    restored.load_state_dict(precision.state_dict())
    assert restored.lg_loss_scale == precision.lg_loss_scale == 19


def test_the_scale_of_another_precision_is_not_taken_over():
    precision = Precision("fp32")
    precision.load_state_dict({"name": "fp16", "lg_loss_scale": 12.0})
    assert precision.loss_scale == 1


def test_a_scale_that_is_none_is_ignored_or_refused():
    precision = Precision("fp32")
    precision.load_state_dict({"name": "fp32", "lg_loss_scale": 5.0})
    assert precision.loss_scale == 1
    for scale, error in ((None, TypeError), (math.inf, ValueError), (2000, OverflowError)):
        with pytest.raises(error):
            Precision("fp16", "cuda").load_state_dict({"name": "fp16", "lg_loss_scale": scale})


def test_fp16_needs_a_gpu():
    with pytest.raises(InputError, match="use --precision bf16 or fp32"):
        Precision("fp16", "cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_unknown_precision(device):
    with pytest.raises(InputError, match="'fp8'; choose from fp32, bf16, fp16"):
        check_precision("fp8", device)


@pytest.mark.parametrize("native", [True, False])
def test_slow_bf16_must_be_asked_for(native, monkeypatch):
    monkeypatch.setattr(cpu, "has_native_bfloat16", lambda: native)
    check_precision("bf16", "cpu", allow_slow_bf16=True)
    check_precision("bf16", "cuda", allow_slow_bf16=False)
    refused = pytest.raises(InputError, match=r"10 to 80 times .* --allow_slow_bf16 True")
    with contextlib.nullcontext() if native else refused:
        check_precision("bf16", "cpu", allow_slow_bf16=False)
